"""What a training cost, as far as its run says."""

from fastarat.common.durations import duration
from fastarat.reports.facts import Facts


def costs(facts: Facts) -> dict[str, str]:
    """By what it is: time and speed, and what they were had with."""
    session, config = facts.last_session, facts.config
    found: dict[str, str] = {}
    if facts.seconds is not None:
        found["training"] = duration(facts.seconds)
    if seconds := facts.total("compile_seconds"):
        found["of it compiling"] = duration(seconds)
    if seconds := facts.total("evaluation_seconds"):
        found["evaluations beside it"] = duration(seconds)
    if energy := _energy(facts):
        found["energy, evaluations included"] = energy
    if facts.images_per_s is not None:
        found["speed"] = f"{facts.images_per_s:,.0f} images/s, the median of the epochs"
    if not facts.problem:
        found["steps"] = f"{facts.lines[-1]['step']:,} of {config.batch} images" if facts.lines else "none"
    found["processes"] = str(config.num_processes)
    how = [str(session[name]) for name in ("device", "dtype", "compile") if session.get(name)]
    if how:
        without = f" without {' and '.join(left_out)}" if (left_out := session.get("without")) else ""
        stem = f", stem channels {channels}" if (channels := session.get("stem_channels")) else ""
        found["the step"] = f"{', '.join(how)}, kernels {session.get('kernels', '?')}{without}{stem}"
    if share := _share_of_peak(facts):
        found["share of the machine's peak"] = share
    return found


def _energy(facts: Facts) -> str:
    """Of the kinds that every epoch has: a part is not shown for the whole."""
    epochs = [line.get("joules", {}) for line in facts.epochs]
    kinds = [kind for kind in (epochs[0] if epochs else {}) if all(kind in of for of in epochs)]
    said = [f"{kind} {sum(of[kind] for of in epochs) / 3600:,.1f} Wh" for kind in kinds]
    return f"{', '.join(said)}, with whatever else ran there" if said else ""


def _share_of_peak(facts: Facts) -> str:
    """Of the arithmetic that the machine did in a large matrix product, what `--profile` recorded in a step."""
    profile = facts.profile
    if not profile:
        return ""
    gflop, ms = (sum(float(part[name]) for part in profile["parts"]) for name in ("gflop", "ms"))
    peak = float(profile["roofs"]["flops_per_s"])
    return f"{100 * gflop * 1e12 / max(ms, 1e-9) / peak:.1f} % of {peak / 1e12:,.2f} TFLOP/s, by its profile"
