"""Where the AR-AT paper's trainings stand between clean and robust accuracy (Waseda et al., ICLR 2025, CIFAR-10)."""

TITLES = {
    "at": "AT",
    "trades": "TRADES",
    "mart": "MART",
    "lbgat": "LBGAT",
    "arrest": "ARREST",
    "arat": "AR-AT",
    "arat-swa": "AR-AT + SWA",
}
# Clean and AutoAttack accuracy in percent by net, Linf 8/255. The paper's published code scores with a version of
# AutoAttack that runs a tenth of the standard's steps.
PAPER = {
    "resnet18": {
        "at": (83.77, 42.42),
        "trades": (81.25, 48.54),
        "mart": (82.15, 47.83),
        "lbgat": (85.00, 48.85),
        "arrest": (86.63, 46.14),
        "arat": (87.82, 49.02),
        "arat-swa": (86.44, 50.28),
    },
    "wrn-34-10": {
        "at": (86.06, 46.26),
        "trades": (84.33, 51.75),
        "mart": (86.10, 49.11),
        "lbgat": (88.19, 52.56),
        "arrest": (90.24, 50.20),
        "arat": (90.89, 50.77),
        "arat-swa": (90.06, 54.03),
    },
}
EPS_255 = 8.0
OTHER_DATA = "the paper's trainings are on CIFAR-10 with Linf 8/255, so they cannot stand beside these"


def net_beside(data: str, norm: str, eps_255: float, model: str) -> str | None:
    """The paper's net that stands beside a run: the run's own, or the ResNet-18 where it has not that; none for other
    data or another ball."""
    if "cifar10" not in data or "cifar100" in data or norm != "linf" or eps_255 != EPS_255:
        return None
    return model if model in PAPER else "resnet18"
