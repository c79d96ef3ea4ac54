"""The notebooks, executed, as a site that needs no server: pages, equations as MathML, every public name, search. `make docs` calls it."""

import html
import importlib
import inspect
import json
import os
import posixpath
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from facelab import FacelabError
from facelab.pipeline.sources import closure, imports, notebook_code
from facelab.base.files import was_made, write_record, write_text

SECTIONS = {"": "Guides", "papers": "Papers", ".": "Foundations", "degradations": "Degradations", "networks": "Networks", "losses": "Losses", "systems": "Systems", "pipeline": "Pipeline"}
GUIDES = ["README", "docs/tour", "docs/own_faces", "docs/new_degradation", "docs/new_system", "docs/gpu", "docs/recipes", "docs/deviations", "results/README"]
CONTENTS = Path("nbs/contents.ipynb")


@dataclass
class Page:
    "One page of the site."
    source: Path              # notebook or Markdown file, relative to the project
    target: str               # relative to the site
    section: str
    title: str = ""
    body: str = ""
    names: list = field(default_factory=list)   # (name, signature, first line of the docstring)
    words: str = ""           # what a search looks through


def pages_of(root):
    "All pages in reading order."
    guides = [Page(Path(f"{name}.md"), "index.html" if name == "README" else f"{name.removeprefix('docs/').replace('/README', '')}.html", "") for name in GUIDES if (root / f"{name}.md").exists()]
    found = [path.relative_to(root / "nbs") for path in sorted((root / "nbs").glob("**/*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    books = [Page("nbs" / path, f"nbs/{path.with_suffix('.html').as_posix()}", "" if "nbs" / path == CONTENTS else path.parent.as_posix()) for path in found]
    order = list(SECTIONS)
    unknown = {page.section for page in books} - set(order)
    if unknown:
        raise FacelabError(f"nbs/{sorted(unknown)[0]} is in no section of the site: add it to SECTIONS in facelab/pipeline/site.py")
    return guides + sorted(books, key=lambda page: order.index(page.section))


# --- executing -------------------------------------------------------------------------------------------------------------------------

def executed(root, source):
    "The notebook with its outputs: executed when its code, or a module that it uses, has changed since; stages as the last run left them."
    if source.parts[1] == "pipeline":
        done = sorted((root / "build" / "notebooks").glob(f"{source.stem}*.ipynb"))
        return json.loads((done[0] if done else root / source).read_text())
    import papermill

    code = notebook_code(root / source)
    made_from, out = {"code": code, "modules": closure(imports(strip_magics(code)), root)}, root / "build" / "site" / "executed" / source.relative_to("nbs")
    record = out.with_suffix(".json")
    if not (out.exists() and was_made(record, made_from)):
        out.parent.mkdir(parents=True, exist_ok=True)
        half = out.with_suffix(".half.ipynb")
        papermill.execute_notebook(root / source, half, kernel_name="python3", cwd=str((root / source).parent), progress_bar=False, log_output=False, extra_arguments=["--log-level=40"])
        half.replace(out)
        write_record(record, made_from)
    book = json.loads((root / source).read_text())   # its words may be newer
    for cell, done in zip((c for c in book["cells"] if c["cell_type"] == "code"), (c for c in json.loads(out.read_text())["cells"] if c["cell_type"] == "code"), strict=True):
        cell["outputs"] = done["outputs"]
    return book


def strip_magics(code):
    return re.sub(r"(?m)^\s*[%!].*$", "", code)


# --- Markdown, equations, code ---------------------------------------------------------------------------------------------------------

MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)((?:[^$\n]|\n(?!\n))+?)(?<!\s)\$(?![\d$])", re.S)
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.S)


def mathml(text, block):
    from latex2mathml.converter import convert

    text = re.sub(r"\\qquad\s*\(([\w.]+)\)\s*$", r"\\qquad (\1)", text.strip()).replace(r"\rVert", r"\Vert").replace(r"\lVert", r"\Vert").replace(r"\tfrac", r"\frac").replace(r"\dfrac", r"\frac").replace(r"\arg", r"\operatorname{arg}")
    return convert(text, display="block" if block else "inline")


def markdown(text):
    "HTML of Markdown; equations become MathML."
    import mistune

    kept = []

    def keep(piece):
        kept.append(piece)
        return f"\x02{len(kept) - 1}\x03"

    parts = CODE.split(text)
    parts[::2] = [MATH.sub(lambda m: keep(mathml(m[1] or m[2], m[1] is not None)), part) for part in parts[::2]]
    out = mistune.create_markdown(escape=False, plugins=["table", "strikethrough"])("".join(parts))
    out = re.sub(r'(?s)<pre><code class="language-(sh|python|yaml|json)">(.*?)</code></pre>', lambda m: highlighted(html.unescape(m[2]), m[1]), out)
    out = re.sub(r"<h([1-4])>(.*?)</h\1>", lambda m: f'<h{m[1]} id="{slug(m[2])}">{m[2]}</h{m[1]}>', out)
    return re.sub("\x02(\\d+)\x03", lambda m: kept[int(m[1])], out)


def plain(text):
    "HTML without its tags."
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def slug(text):
    return re.sub(r"[^\w]+", "-", plain(text).lower()).strip("-")


def highlighted(code, language="python"):
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return highlight(code, get_lexer_by_name(language), HtmlFormatter())


def output(out):
    "HTML of one output of a cell."
    if out["output_type"] == "stream":
        text = re.sub(r"\x1b\[[0-9;]*m", "", "".join(out["text"])).rsplit("\r", 1)[-1]
        return f'<pre class="out">{html.escape(text)}</pre>' if out["name"] == "stdout" and text.strip() else ""
    if out["output_type"] == "error":
        raise FacelabError(f"an executed notebook holds an error ({out['ename']}: {out['evalue']})")
    data = {kind: "".join(value) if isinstance(value, list) else value for kind, value in out["data"].items()}
    if "image/png" in data:
        return f'<img alt="{html.escape(data.get("text/plain", "picture")[:80])}" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "application/vnd.jupyter.widget-view+json" in data:
        return '<p class="out"><i>A widget: run the notebook to use it.</i></p>'
    for kind, show in {"image/svg+xml": str, "text/html": str, "text/markdown": markdown, "text/latex": lambda t: mathml(t.strip("$ \n"), True)}.items():
        if kind in data:
            return f'<div class="out">{show(data[kind])}</div>'
    text = data.get("text/plain", "")
    return f'<pre class="out">{html.escape(text)}</pre>' if text and not text.startswith("<Figure") else ""


def cell_html(cell):
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return markdown(source.rpartition("\n\n")[0] if "navigation" in cell["metadata"].get("tags", []) else source)   # the site has steps of its own
    if cell["cell_type"] != "code" or re.search(r"(?m)^#\|\s*(hide|default_exp)", source) or "injected-parameters" in cell["metadata"].get("tags", []):
        return ""
    code = re.sub(r"(?m)^#\|.*\n?", "", source).strip("\n")
    exported = " exported" if re.search(r"(?m)^#\|\s*export", source) else ""
    shown = f'<div class="code{exported}">{highlighted(code)}</div>' if code else ""
    return shown + "".join(map(output, cell.get("outputs", [])))


# --- public names ----------------------------------------------------------------------------------------------------------------------

def public_names(module):
    "(name, signature, summary) of what a module exports."
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        thing = getattr(loaded, name)
        if getattr(thing, "__module__", module) != module or not callable(thing):
            continue
        try:
            signature = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))
        except (TypeError, ValueError):
            signature = ""
        yield name, signature, next(iter((inspect.getdoc(thing) or "").splitlines()), "")


def table_of(names):
    rows = "".join(f'<tr id="name-{name}"><td><code>{name}</code></td><td><code class="signature">{html.escape(signature)}</code></td><td>{html.escape(summary)}</td></tr>' for name, signature, summary in names)
    return f'<h2 id="public-names">Public names</h2><table class="names"><tr><th>name</th><th>signature</th><th>what it does</th></tr>{rows}</table>' if rows else ""


# --- pages -----------------------------------------------------------------------------------------------------------------------------

def fill(page, root):
    "Put title, body and names into a page."
    if page.source.suffix == ".md":
        page.body = markdown((root / page.source).read_text())
    else:
        book = executed(root, page.source)
        page.body = "\n".join(map(cell_html, book["cells"]))
        module = re.search(r"(?m)^#\|\s*default_exp\s+(\S+)", "\n".join("".join(c["source"]) for c in book["cells"]))
        if module:
            page.names = list(public_names(f"facelab.{module[1]}"))
            page.body += table_of(page.names)
    heading = re.search(r"<h1[^>]*>(.*?)</h1>", page.body)
    page.title, page.words = plain(heading[1]) if heading else page.source.stem, " ".join(plain(re.sub(r'<img[^>]*>|<div class="code.*?</div>', "", page.body)).split())[:6000]
    return page


def linked(page, targets, root):
    "The body, its links to notebooks and files turned into links of the site; a link to nothing is an error."
    def turn(m):
        attribute, address = m[1], unquote(html.unescape(m[2]))
        if re.match(r"[a-z]+:|//|#name-", address):
            return m[0]
        path, _, anchor = address.partition("#")
        anchor = slug(anchor)   # Jupyter's keep capitals
        if not path:
            return f'{attribute}="#{anchor}"'
        places = [posixpath.normpath(posixpath.join(folder, path)) for folder in (page.source.parent.as_posix(), "docs")]   # the second: of a guide that a notebook shows
        place = next((p for p in places if p in targets or (root / p).exists()), places[0])
        if place in targets:
            new = posixpath.relpath(targets[place], posixpath.dirname(page.target) or ".") + (f"#{anchor}" if anchor else "")
        elif (root / place).is_file() and attribute == "src":
            shutil.copy2(root / place, (root / "build" / "site" / "html" / "files").joinpath(Path(place).name))
            new = posixpath.relpath(f"files/{Path(place).name}", posixpath.dirname(page.target) or ".")
        elif (root / place).exists():
            return f'{attribute}="" data-file="{html.escape(place)}"' if attribute == "href" else m[0]
        else:
            raise FacelabError(f"{page.source} links to {address}, which does not exist: correct the link")
        return f'{attribute}="{html.escape(new)}"'

    body = re.sub(r'(href|src)="([^"]*)"', turn, page.body)
    return re.sub(r'<a href="" data-file="([^"]*)">(.*?)</a>', r"\2 (<code>\1</code>)", body)


def sidebar(pages, page):
    here, out = posixpath.dirname(page.target) or ".", []
    for section, title in SECTIONS.items():
        inside = [p for p in pages if p.section == section]
        items = "".join(f'<li{" class=here" if p is page else ""}><a href="{posixpath.relpath(p.target, here)}">{html.escape(p.title)}</a></li>' for p in inside)
        out.append(f'<details{" open" if section in ("", page.section) else ""}><summary>{title}</summary><ul>{items}</ul></details>' if inside else "")
    return "".join(out)


def rendered(page, pages, css):
    "The whole page."
    here, i = posixpath.dirname(page.target) or ".", pages.index(page)
    up = posixpath.relpath(".", here)
    step = lambda k, mark: f'<a class="step" href="{posixpath.relpath(pages[k].target, here)}">{mark.format(html.escape(pages[k].title))}</a>' if 0 <= k < len(pages) else "<span></span>"
    inside = "".join(f'<li><a href="#{a}">{plain(t)}</a></li>' for a, t in re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', page.body))
    return TEMPLATE.format(title=html.escape(page.title), up=up, css=css, sidebar=sidebar(pages, page), body=page.body, inside=f'<nav class="inside" aria-label="on this page"><ul>{inside}</ul></nav>' if inside else "",
                           steps=f'<footer>{step(i - 1, "← {}")}{step(i + 1, "{} →")}</footer>', source=page.source)


def dead_links(folder):
    "Links of the site that lead nowhere: (page, link)."
    texts = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.glob("**/*.html")}
    anchors = {name: set(re.findall(r'id="([^"]*)"', text)) for name, text in texts.items()}
    for name, text in texts.items():
        for address in re.findall(r'(?:href|src)="([^"]*)"', text):
            address = html.unescape(address)
            if re.match(r"[a-z]+:|//", address):
                continue
            path, _, anchor = address.partition("#")
            place = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if not (folder / place).is_file() or anchor and place in anchors and anchor not in anchors[place]:
                yield name, address


def build(root, jobs=2, progress=True):
    "Write the site to build/site/html; returns the pages."
    from pygments.formatters import HtmlFormatter
    from tqdm import tqdm

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder, pages = root / "build" / "site" / "html", pages_of(root)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(lambda page: fill(page, root), pages), total=len(pages), desc="pages", unit="page", disable=not progress))
    targets = {page.source.as_posix(): page.target for page in pages}
    css = HtmlFormatter(style="default").get_style_defs(".highlight") + "@media (prefers-color-scheme: dark) {" + HtmlFormatter(style="github-dark").get_style_defs(".highlight") + "}"
    for page in pages:
        page.body = linked(page, targets, root)
    for page in pages:
        write_text(folder / page.target, rendered(page, pages, css + STYLE))
    index = [[p.title, p.target, SECTIONS[p.section], p.words] for p in pages] + [[name, f"{p.target}#name-{name}", p.title, f"{name} {summary}"] for p in pages for name, _, summary in p.names]
    write_text(folder / "search.js", f"const INDEX = {json.dumps(index, ensure_ascii=False)};\n{SEARCH}")
    dead = list(dead_links(folder))
    if dead:
        raise FacelabError(f"{dead[0][0]} links to {dead[0][1]}, which is not there ({len(dead)} dead links)")
    return pages


STYLE = """
:root { color-scheme: light dark; --fg: #1b1b1f; --bg: #ffffff; --soft: #f4f4f6; --line: #d9d9de; --link: #0b5cad; --mark: #e69f00; }
@media (prefers-color-scheme: dark) { :root { --fg: #e4e4e7; --bg: #17181c; --soft: #202127; --line: #3a3b42; --link: #8ab8ff; } img { background: #fff; } }
* { box-sizing: border-box; } body { margin: 0; font: 16px/1.55 system-ui, sans-serif; color: var(--fg); background: var(--bg); }
a { color: var(--link); } .page { display: grid; grid-template-columns: 17rem minmax(0, 1fr); max-width: 90rem; margin: auto; }
aside { padding: 1rem; border-right: 1px solid var(--line); position: sticky; top: 0; height: 100vh; overflow: auto; font-size: .9rem; }
aside ul { list-style: none; margin: .2rem 0 .6rem; padding-left: .8rem; } aside li.here a { font-weight: bold; } summary { cursor: pointer; font-weight: 600; }
main { padding: 1rem 2rem 3rem; min-width: 0; } h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
.code { margin: .8rem 0; border-left: 3px solid var(--line); } .code.exported { border-left-color: var(--mark); } .highlight { background: var(--soft) !important; } .highlight pre { margin: 0; padding: .6rem .8rem; overflow: auto; font-size: .82rem; line-height: 1.4; }
pre { overflow: auto; } main > pre { background: var(--soft); padding: .6rem .8rem; font-size: .82rem; line-height: 1.4; } pre.out { background: none; overflow: auto; font-size: .82rem; padding: .3rem .8rem; margin: .3rem 0 1rem; } div.out { overflow: auto; margin-bottom: 1rem; } img { max-width: 100%; display: block; }
code { font-size: .88em; } p code, li code { overflow-wrap: anywhere; } p code, li code, td code { background: var(--soft); padding: .05em .25em; border-radius: 3px; } table { border-collapse: collapse; border: 0; display: block; width: max-content; max-width: 100%; overflow: auto; font-size: .88rem; }
td, th { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top; } .signature { white-space: pre-wrap; } math[display=block] { overflow-x: auto; padding: .4rem 0; }
footer { display: flex; justify-content: space-between; margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; } blockquote { margin: 1rem 0; padding: 0 1rem; border-left: 3px solid var(--line); }
#found { list-style: none; padding: 0; } #found li { margin: .3rem 0; } input[type=search] { width: 100%; padding: .4rem; font: inherit; color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 4px; }
.inside ul { padding-left: 1rem; font-size: .9rem; columns: 2; } .source { font-size: .8rem; opacity: .7; }
.skip { position: absolute; left: -99rem; } .skip:focus { left: 1rem; background: var(--bg); padding: .5rem; z-index: 1; } :focus-visible { outline: 2px solid var(--link); outline-offset: 2px; } .narrow { display: none; }
@media (max-width: 50rem) { .page { display: flex; flex-direction: column; } aside { display: contents; } .head, #all-pages { padding: .6rem 1rem; } .head { border-bottom: 1px solid var(--line); } .head p { margin: 0 0 .5rem; display: flex; justify-content: space-between; }
 .narrow { display: inline; } #all-pages { order: 1; border-top: 1px solid var(--line); line-height: 1.9; } main { padding: 1rem; } .inside ul { columns: 1; } }
"""

SEARCH = """
const box = document.querySelector('input[type=search]'), found = document.getElementById('found'), up = document.body.dataset.up;
const lower = INDEX.map(([title, , , words]) => [title.toLowerCase(), words.toLowerCase()]);
box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  found.replaceChildren();
  if (!words.length) return;
  const score = i => words.every(w => lower[i][0].includes(w) || lower[i][1].includes(w)) ? words.reduce((s, w) => s + (lower[i][0] === w ? 9 : lower[i][0].startsWith(w) ? 4 : lower[i][0].includes(w) ? 2 : 1), 0) : 0;
  INDEX.map((_, i) => [score(i), i]).filter(([s]) => s).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, 12).forEach(([, i]) => {
    const item = document.createElement('li'), link = document.createElement('a');
    link.href = up + '/' + INDEX[i][1]; link.textContent = INDEX[i][0];
    item.append(link, ' ', INDEX[i][2]); found.append(item);
  });
});
box.addEventListener('keydown', event => { const first = found.querySelector('a'); if (event.key == 'Enter' && first) first.click(); });
"""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title} – facelab</title><style>{css}</style></head>
<body data-up="{up}"><a class="skip" href="#the-page">to the text</a><div class="page"><aside><div class="head"><p><a href="{up}/index.html"><b>facelab</b></a> <a class="narrow" href="#all-pages">all pages</a></p>
<input type="search" placeholder="search" aria-label="search pages and names"><ul id="found" aria-live="polite"></ul></div><nav id="all-pages" aria-label="all pages">{sidebar}</nav></aside>
<main id="the-page">{inside}{body}<p class="source">Source: <code>{source}</code></p>{steps}</main></div><script src="{up}/search.js"></script></body></html>
"""
