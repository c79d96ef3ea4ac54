"""The stages that are out of date, as a makefile: make runs as many of them side by side as it is told, each after what it needs.

DVC knows the stages and what they need, but runs them one after the other. `dvc repro -s` of different stages may run at the same time (while one process
writes down what its stage made, others cannot start, and try again), and make is a scheduler that every machine has; so one is written in the language of the other.
"""

from pathlib import Path

from facelab import FacelabError
from facelab.engine.params import near
from facelab.engine.sources import evaluated
from facelab.engine.text import write_text

HEAD = """# Written by `python -m facelab.engine grid`; run by `make repro`.
SHELL := /bin/bash
.PHONY: first all {names}
first: {first}
all: {names}
{names}:
\t@until dvc repro -s $@ > build/logs/$@.log 2>&1; do grep -q "Unable to acquire lock" build/logs/$@.log && sleep 1 || {{ echo "stage $@ failed; the end of build/logs/$@.log:" >&2; tail -n 5 build/logs/$@.log >&2; exit 1; }}; done
\t@echo $@
"""


def stale_stages(root):
    "Names of the stages that must run -> those of them that must run before."
    import logging

    from dvc.repo import Repo
    from networkx import ancestors

    logging.getLogger("dvc").setLevel(logging.ERROR)   # it warns that data.dvc is frozen, which it is meant to be
    with Repo(str(root)) as repo:
        graph = repo.index.graph   # its edges lead from a stage to what it needs
        changed = repo.status()
        stale = {stage for stage in graph if stage.addressing in changed and not stage.frozen}
        stale |= set().union(*(ancestors(graph, stage) for stage in stale))
        return {stage.addressing: sorted(need.addressing for need in graph.successors(stage) if need in stale) for stage in sorted(stale, key=lambda s: s.addressing)}


def of_paper(stages, paper, papers):
    "The stages that a paper's tables, figures and drawings need."
    if paper not in papers:
        raise FacelabError(f"there is no paper {paper!r}: {near(paper, papers)}")
    todo, kept = [f"{stage}@{paper}" for stage in ("tables", "figures", "architecture")], {}
    while todo:
        name = todo.pop()
        if name in stages and name not in kept:
            kept[name] = stages[name]
            todo += stages[name]
    return kept


def write_grid(root, paper=None):
    "Write `build/grid.mk`, all of it or what one paper shows; returns how many stages it holds."
    papers, stages, build = evaluated(root), stale_stages(root), Path(root) / "build"
    first = [name for name in (f"tables@{papers[0]}", f"figures@{papers[0]}") if name in stages]   # something to see, while the others are made
    stages = of_paper(stages, paper, papers) if paper else stages
    (build / "logs").mkdir(parents=True, exist_ok=True)
    needs = "".join(f"{name}: {' '.join(before)}\n" for name, before in stages.items() if before)
    write_text(build / "grid.mk", HEAD.format(names=" ".join(stages), first="" if paper else " ".join(first)) + needs if stages else "first all:\n")
    return len(stages)
