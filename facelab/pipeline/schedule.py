"""The stages that are out of date, as a makefile: make runs several of them side by side, each after what it needs.

DVC has the stages and what they need, but runs them one after the other. `dvc repro -s` of different stages may run at
the same time (while one process writes down what its stage made, others cannot start, and try again), and make is a
scheduler that every machine has; so one is written in the language of the other. DVC takes seconds to start, so short
stages that need the same are given to it in bundles.
"""

from pathlib import Path

from facelab import FacelabError
from facelab.base.names import near
from facelab.pipeline.sources import evaluated_papers
from facelab.base.files import write_text

HEAD = r"""# Written by `python -m facelab.pipeline schedule`; run by `make repro`.
SHELL := /bin/bash
.PHONY: first all {names}
first: {first}
all: {names}
{names}:
	@until dvc repro -k -s $(STAGES) > build/logs/$@.log 2>&1; do \
	  grep -q "Unable to acquire lock" build/logs/$@.log && sleep 1 || \
	  {{ echo "stage $@ failed; the end of build/logs/$@.log:" >&2; tail -n 5 build/logs/$@.log >&2; exit 1; }}; \
	done
	@printf '%s\n' $(STAGES)
"""
TOGETHER = 3  # stages in a bundle


def stale_stages(root):
    "Names of the stages that must run -> those of them that must run before."
    import logging

    from dvc.repo import Repo
    from networkx import ancestors

    logging.getLogger("dvc").setLevel(logging.ERROR)  # it warns that data.dvc is frozen, which it is meant to be
    with Repo(str(root)) as repo:
        graph = repo.index.graph  # its edges lead from a stage to what it needs
        changed = repo.status()
        stale = {stage for stage in graph if stage.addressing in changed and not stage.frozen}
        stale |= set().union(*(ancestors(graph, stage) for stage in stale))
        return {
            stage.addressing: sorted(need.addressing for need in graph.successors(stage) if need in stale)
            for stage in sorted(stale, key=lambda s: s.addressing)
        }


def stages_of_paper(stages, paper, papers):
    "The stages that a paper's tables, figures and drawings need."
    if paper not in papers:
        raise FacelabError(f"there is no paper {paper!r}: {near(paper, papers)}")
    return needed_for([f"{stage}@{paper}" for stage in ("tables", "figures", "architecture")], stages)


def needed_for(names, stages):
    "Those of the stages, and what they need."
    todo, kept = list(names), {}
    while todo:
        name = todo.pop()
        if name in stages and name not in kept:
            kept[name] = stages[name]
            todo += stages[name]
    return kept


def bundle(stages, alone):
    "Stages in bundles: those of one kind that need the same, `TOGETHER` at a time; what stands `alone` stays so."
    alike = {}
    for name, needs in stages.items():
        alike.setdefault((name if name in alone else name.partition("@")[0], *needs), []).append(name)
    return [names[i : i + TOGETHER] for names in alike.values() for i in range(0, len(names), TOGETHER)]


def write_schedule(root, paper=None):
    "Write `build/schedule.mk`, all of it or what one paper shows; returns how many stages it holds."
    papers, stages, build = evaluated_papers(root), stale_stages(root), Path(root) / "build"
    # something to see, while the others are made
    first = [name for name in (f"tables@{papers[0]}", f"figures@{papers[0]}") if name in stages]
    stages = stages_of_paper(stages, paper, papers) if paper else stages
    (build / "logs").mkdir(parents=True, exist_ok=True)
    bundles = bundle(stages, needed_for(first, stages))
    leader = {name: names[0] for names in bundles for name in names}
    rules = []
    for names in bundles:
        before = dict.fromkeys(leader[need] for need in stages[names[0]])
        rules.append(f"{names[0]}: STAGES := {' '.join(names)}\n{names[0]}: {' '.join(before)}\n")
    head = HEAD.format(names=" ".join(names[0] for names in bundles), first="" if paper else " ".join(first))
    write_text(build / "schedule.mk", head + "".join(rules) if stages else "first all:\n")
    return len(stages)
