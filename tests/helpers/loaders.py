"""One of the loaders' cases, and loaders' results without their processes."""

from pathlib import Path

from bench.loaders.cases import LoaderCase


def case(cases: list[LoaderCase], loader: str, stored: str) -> LoaderCase:
    """The case of this loader on images that are stored so."""
    (found,) = (case for case in cases if (case.loader, case.stored) == (loader, stored))
    return found


def results(speed: float, cpu: float, share: float | None = None) -> dict:
    """What the processes of one turn give."""
    stage = {"images": 8, "images_per_s": speed, "cpu_s_per_1000": cpu}
    found = {"first": {**stage, "first_batch_s": 0.5}, "steady": stage}
    training = {**stage, "waiting_share": share, "ms_a_step": 3.0, "model": "tiny", "batch": 8, "attack_steps": 1}
    return found | ({"training": training} if share is not None else {})


class Fake:
    """Stands in for the processes: a loader's results, turn by turn, or what is wrong with it."""

    def __init__(self, turns: dict, wrong: dict[str, str] | None = None):
        self.turns, self.wrong, self.order = {k: list(v) for k, v in turns.items()}, wrong or {}, []

    def run(self, task, form):
        name = (form.loader, Path(form.path).name)
        if task == "check":
            return {"problem": self.wrong.get(form.loader), "differences": {"exact": 0.0}}
        self.order.append((task, *name))
        found = self.turns[name][0]
        if isinstance(found, Exception):
            raise found
        if task == "speed":
            return {stage: value for stage, value in found.items() if stage != "training"}
        return self.turns[name].pop(0)["training"]
