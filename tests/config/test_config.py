"""Configurations: every recipe holds, JSON gives back what it took, and each mistake is named with its fix."""

import json
import math
import re
from dataclasses import replace

import pytest

from fastarat.common.errors import UserError
from fastarat.config import Config, by_flag, from_dict, load_config, published_code, recipes, to_json
from fastarat.config.attack import AttackConfig
from fastarat.config.data import AugmentConfig
from fastarat.config.evaluation import EvaluationSettings
from fastarat.config.method import ARATConfig, ARRESTConfig, ATConfig, LBGATConfig, MARTConfig, TRADESConfig
from fastarat.config.model import ModelConfig
from fastarat.config.training import (
    AveragingConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from fastarat.training.step.sgd import learning_rate

NAMES = recipes.names()


def has_published_code(name: str) -> bool:
    return recipes.recipe(name).method.name in ("at", "arat") and recipes.recipe(name).attack.steps > 1


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_valid_and_survives_json(name):
    configs = [recipes.recipe(name)] + ([recipes.recipe(name, "published-code")] if has_published_code(name) else [])
    for config in configs:
        assert config.checked() is config
        assert from_dict(json.loads(to_json(config)), "here") == config


@pytest.mark.parametrize("name", [name for name in NAMES if not has_published_code(name)])
def test_the_published_code_has_no_other_methods(name):
    with pytest.raises(UserError, match="published-code is a fidelity of the recipes of arat and at"):
        recipes.recipe(name, "published-code")


@pytest.mark.parametrize("suite", ["digits", "cifar10-tiny", "cifar10-resnet18", "cifar10-wrn-34-10"])
def test_every_method_has_its_recipes(suite):
    methods = ("at", "arat", "trades", "mart", "lbgat", "arrest", "fgsm-rs", "n-fgsm", "standard")
    assert {f"{suite}-{method}" for method in methods} <= set(NAMES)


@pytest.mark.parametrize("suite", ["digits", "cifar10-tiny", "cifar10-resnet18-w32"])
def test_methods_are_compared_with_equal_data_net_epochs_schedule_and_eps(suite):
    at = recipes.recipe(f"{suite}-at")
    for name in NAMES:
        if not name.startswith(f"{suite}-") or name.endswith("-fast"):
            continue
        config = recipes.recipe(name)
        like_at = replace(config, recipe=at.recipe, method=at.method, attack=at.attack)
        assert like_at == at, name
        assert config.attack.known_eps_255 == config.eps_255 == at.eps_255, name
        assert config.attack.steps == at.attack.steps or config.attack.steps < 2, name


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-fast")])
def test_a_fast_recipe_trains_the_same_net_by_the_same_method_for_the_same_threat_model(name):
    fast, standard = recipes.recipe(name), recipes.recipe(name.removesuffix("-fast"))
    same = ("data", "model", "num_validation_images", "eps_255")
    assert all(getattr(fast, part) == getattr(standard, part) for part in same)
    assert fast.method.name == standard.method.name
    assert replace(fast.evaluation, eps_255=None) == standard.evaluation


def test_trades_mart_and_lbgat_train_in_their_papers_ball_and_are_evaluated_in_the_usual_one():
    for method in ("trades", "mart", "lbgat"):
        for net in ("resnet18", "wrn-34-10"):
            config = recipes.recipe(f"cifar10-{net}-{method}")
            assert config.attack.eps == pytest.approx(0.031, rel=1e-12)
            assert config.attack.step_size == pytest.approx(0.007, rel=1e-12)
            assert config.eps_255 == 8 and config.attack.start == "gaussian"
    assert recipes.recipe("cifar10-resnet18-at").eps_255 == 8


def test_schedules_are_those_of_the_methods_papers():
    def schedule(name):
        config = recipes.recipe(f"cifar10-{name}")
        last = range(1, config.epochs + 1)
        peak, whole = config.optimizer.learning_rate, {"steps_per_epoch": 1, "epochs": config.epochs}
        rates = [learning_rate(config.schedule, peak, e - 1, **whole) for e in last]
        changes = {e: round(r, 9) for e, r, before in zip(last, rates, [None, *rates], strict=False) if r != before}
        return changes, config.optimizer.weight_decay, config.epochs

    for net in ("resnet18", "wrn-34-10"):
        assert schedule(f"{net}-trades") == ({1: 0.1, 75: 0.01}, 2e-4, 76)
        lbgat = {1: 0.02, 2: 0.1, 76: 0.01, 91: 0.001}
        assert schedule(f"{net}-lbgat") == (lbgat, 2e-4, 100)
        for method in ("arrest", "fgsm-rs", "n-fgsm", "standard"):
            assert schedule(f"{net}-{method}") == schedule(f"{net}-at") == ({1: 0.1, 76: 0.01, 91: 0.001}, 5e-4, 100)
    assert schedule("wrn-34-10-mart") == ({1: 0.1, 75: 0.01, 90: 0.001}, 7e-4, 90)
    assert schedule("resnet18-mart") == ({1: 0.01, 75: 1e-3, 90: 1e-4, 100: 1e-5}, 3.5e-3, 120)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_named_for_its_data_model_and_method(name):
    config = recipes.recipe(name)
    average = "-swa" if config.averaging.kind == "swa" else ""
    net = config.model.name.removesuffix("-imagenet")
    model = "" if net == config.data else f"-{net}"
    method, fast = config.method.name, "-fast" if name.endswith("-fast") else ""
    if config.attack.steps == 1 and not fast:
        method = "fgsm-rs" if config.attack.project else "n-fgsm"
    assert config.recipe == name == f"{config.data}{model}-{method}{average}{fast}"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_head_gives_the_command_that_runs_it(name):
    assert re.search(rf"^\s*fastarat train {re.escape(name)}( --|$)", recipes.head(name), re.MULTILINE)


def test_an_unknown_recipe_is_answered_with_the_nearest_ones():
    with pytest.raises(UserError, match="did you mean 'cifar10-resnet18-arat'"):
        recipes.recipe("cifar10-resnet-arat")


def test_the_default_recipe_is_there():
    assert recipes.DEFAULT == "digits-arat" and recipes.DEFAULT in NAMES


def test_the_defaults_are_the_papers_settings():
    config = Config()
    assert (config.epochs, config.batch, config.num_validation_images) == (100, 128, 0)
    attack = AttackConfig("pgd", "linf", 8, 2, 10, "uniform", "train", "cross-entropy")
    assert config.resolved().attack == attack and config.attack.eps == 8 / 255 and config.attack.step_size == 2 / 255
    assert config.optimizer == OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
    assert config.augment == AugmentConfig(4, True)
    assert config.schedule == ScheduleConfig("steps", (76, 91), 0.1, 0)
    method = config.method
    assert (method.gamma, method.stop_gradient, method.predictor, method.metric) == (30, "clean", True, "cosine")
    assert method.batch_norm == "split" and method.auto_balance
    assert recipes.recipe("cifar10-wrn-34-10-arat").method.gamma == 100
    assert recipes.recipe("cifar10-resnet18-arat-swa").averaging == AveragingConfig("swa", 0.999, 76, 500)


@pytest.mark.parametrize("name", ["cifar10-resnet18-arat", "cifar10-wrn-34-10-arat-swa", "digits-arat"])
def test_the_published_code_departs_in_these_settings_and_no_others(name):
    paper = recipes.recipe(name)
    published = recipes.recipe(name, "published-code")
    late = tuple(epoch + 1 for epoch in paper.schedule.milestones)
    assert published == replace(
        paper,
        fidelity="published-code",
        attack=replace(paper.attack, start="published-code"),  # 1: the noise moves the batch
        schedule=replace(paper.schedule, milestones=late, warmup_epochs=1, warmup_factor=0.2),  # 2
        method=replace(paper.method, balance_images=1024, balance_augmented=True),  # 4
        evaluation=replace(paper.evaluation, start="published-code"),  # 5
        averaging=replace(paper.averaging, reestimate="published-code"),  # 6
    )
    assert published.attack.batch_norm == "train"  # 3: the default too


@pytest.mark.parametrize("name", [name for name in NAMES if re.search("resnet(?!18-w32)|wrn", name)])
def test_recipes_for_gpus_watch_all_test_images_and_attack_a_thousand_of_them(name):
    for fidelity in ("paper", "published-code") if has_published_code(name) else ("paper",):
        evaluation = recipes.recipe(name, fidelity).evaluation
        assert (evaluation.num_images, evaluation.steps, evaluation.every_epochs) == (1000, 10, 1)
        assert evaluation.num_clean_images == 10_000  # CIFAR's


def test_at_of_the_published_code_has_no_balance_to_change():
    assert published_code(Config(method=ATConfig())).method == ATConfig()


PROBLEMS = {
    "epochs is 0": Config(epochs=0),
    "batch is 0": Config(batch=0),
    "batch is -4": Config(batch=-4),
    "seed is -1": Config(seed=-1),
    "gpus is -1": Config(gpus=-1),
    "num_train_images is 0": Config(num_train_images=0),
    "num_validation_images is -1": Config(num_validation_images=-1),
    "batch 128 does not divide among 3 processes": Config(procs=3),
    "gpus and procs exclude each other": Config(gpus=2, procs=2),
    "gpus are several GPUs, and device is cpu: give --device cuda": Config(gpus=1, device="cpu"),
    "averaging starts at epoch 76 of 10": Config(epochs=10, averaging=AveragingConfig("swa")),
    "attack eps_255 is -8": Config(attack=AttackConfig(eps_255=-8)),
    "attack eps_255: l2 has no usual radius; give one": Config(attack=AttackConfig(norm="l2")),
    "attack eps_255 is 300: give it in 1/255": Config(attack=AttackConfig(eps_255=300)),
    "attack step_255 is inf": Config(attack=AttackConfig(step_255=float("inf"))),
    "attack steps is 0": Config(attack=AttackConfig(steps=0)),
    "unknown attack 'pdg'": Config(attack=AttackConfig("pdg")),
    "unknown model 'resnet19'.*resnet18": Config(model=ModelConfig("resnet19")),
    "depth of 6n": Config(model=ModelConfig("wrn-33-10")),
    "attack steps is -1": Config(attack=AttackConfig(steps=-1, start="none")),
    "attack start_scale is -1": Config(attack=AttackConfig(start_scale=-1)),
    "start_scale is the uniform start's": Config(attack=AttackConfig(start="gaussian", start_scale=2)),
    "moves the ball, which project off": Config(attack=AttackConfig(start="published-code", project=False)),
    "method label_smoothing is 1": Config(method=ATConfig(label_smoothing=1.0)),
    "method label_smoothing is nan": Config(method=ARATConfig(label_smoothing=float("nan"))),
    "method beta is -1": Config(method=TRADESConfig(beta=-1)),
    "method beta is inf": Config(method=MARTConfig(beta=float("inf"))),
    "method teacher: unknown model 'resnet19'": Config(method=LBGATConfig(teacher="resnet19")),
    "method threshold is -1": Config(method=ARRESTConfig(threshold=-1)),
    "evaluation eps_255 is -8": Config(evaluation=EvaluationConfig(eps_255=-8)),
    "evaluation eps_255 is 300: give it in 1/255": Config(evaluation=EvaluationConfig(eps_255=300)),
    "method gamma is -1": Config(method=ARATConfig(gamma=-1)),
    "method clean_weight is nan": Config(method=ARATConfig(clean_weight=float("nan"))),
    "method balance_images is 0": Config(method=ARATConfig(balance_images=0)),
    "augment crop_padding is -1": Config(augment=AugmentConfig(-1)),
    "optimizer 'moun'": Config(optimizer=OptimizerConfig(name="moun")),
    r"optimizer learning_rate is 1e\+30": Config(optimizer=OptimizerConfig(learning_rate=1e30, muon_factor=1e9)),
    "optimizer learning_rate is nan": Config(optimizer=OptimizerConfig(learning_rate=float("nan"))),
    "schedule milestones are": Config(schedule=ScheduleConfig(milestones=(91, 76))),
    "schedule rise is 1": Config(schedule=ScheduleConfig("cyclic", rise=1)),
    "averaging decay is 1": Config(averaging=AveragingConfig("ema", decay=1, start_epoch=1)),
    "averaging start_epoch": Config(averaging=AveragingConfig("ema", start_epoch=0)),
    "evaluation num_clean_images is -1": Config(evaluation=EvaluationConfig(num_clean_images=-1)),
    "evaluation batch": Config(evaluation=EvaluationConfig(batch=0)),
    "evaluation steps is 0: give 1 or more": Config(evaluation=EvaluationConfig(steps=0)),
    "checkpoint keep is 0": Config(checkpoint=CheckpointConfig(keep=0)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_mistake_is_named(problem):
    with pytest.raises(UserError, match=problem) as caught:
        PROBLEMS[problem].checked()
    assert "\n" not in str(caught.value)


def test_a_step_that_is_not_given_is_a_quarter_of_its_own_radius():
    attack = AttackConfig(norm="l2", eps_255=128)
    assert (attack.step_size, replace(attack, step_255=3).step_size) == (32 / 255, 3 / 255)
    wide = Config(attack=attack).resolved()
    assert (wide.attack.eps_255, wide.attack.step_255, wide.evaluation.step_255) == (128, 32, 32)
    apart = Config(attack=attack, evaluation=EvaluationConfig(eps_255=64)).resolved()
    assert (apart.attack.step_255, apart.evaluation.step_255) == (32, 16) and apart.resolved() == apart


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_evaluated_by_steps_of_a_quarter_of_its_radius(name):
    config = recipes.recipe(name).resolved()
    assert config.evaluation.step_255 == config.eps_255 / 4


def test_recipes_with_a_radius_of_their_own_have_the_steps_that_they_name():
    sizes = {"digits-arat": (45.9, 11.475), "imagenet-resnet50-arat": (4, 8 / 3), "imagenette-resnet18-arat": (4, 1)}
    for name, expected in sizes.items():
        attack = recipes.recipe(name).resolved().attack
        assert (attack.eps_255, attack.step_255) == expected, name


def test_of_what_a_run_has_stored_a_step_of_a_quarter_follows_another_radius_and_others_stay():
    stored = from_dict(json.loads(to_json(recipes.recipe("cifar10-tiny-arat").resolved())), "here").following()
    assert stored.resolved() == recipes.recipe("cifar10-tiny-arat").resolved()
    wider = replace(stored, attack=replace(stored.attack, eps_255=16)).resolved()
    assert (wider.attack.step_255, wider.evaluation.step_255) == (4, 4)  # the recipe's own, and a quarter of 16


@pytest.mark.parametrize(
    "given",
    [
        ("linf", 8 / 255, "eps is 0.0313725/255 of the pixel range", "if 8/255 is meant, flags take 8,"),
        ("linf", 0.5),
        ("linf", 0),
        ("l2", 0.5, "eps is 0.5/255 of the pixel range", "if 127.5/255 is meant, flags take 127.5,"),
        ("l2", 2.55),
    ],
)
def test_a_radius_that_was_given_in_pixel_units_is_asked_about(given):
    norm, eps_255, *words = given
    found = Config(attack=AttackConfig(norm=norm, eps_255=eps_255)).doubts()
    assert len(found) == bool(words) and all(word in said for said in found for word in words)
    assert EvaluationSettings("pgd", norm=norm, eps=eps_255 / 255).doubts() == tuple(found)
    assert EvaluationSettings("none", norm=norm, eps=eps_255 / 255).doubts() == ()


@pytest.mark.parametrize(
    ("steps", "step_255", "reach"),
    [(2, 0.01, "0.02/255"), (3, None, "6/255"), (4, None, ""), (1, 8, ""), (80, 0.1, ""), (20, 0, "0/255")],
)
def test_steps_that_do_not_lead_to_the_border_of_the_ball_are_doubted(steps, step_255, reach):
    """Four of a quarter do, whatever the roundings of 0.1/255 and of a quarter."""
    given = EvaluationSettings("pgd,cw", steps=steps, step=None if step_255 is None else step_255 / 255)
    config = Config(evaluation=EvaluationConfig(steps=steps, step_255=step_255))
    for found, who in ((given.doubts(), "pgd and cw"), (config.doubts(), "the evaluation")):
        said = f"The steps of {who} lead {reach} at most in a ball of 8/255"
        assert len(found) == bool(reach) and all(of.startswith(said) for of in found)
    assert replace(given, attack="apgd-ce").doubts() == ()


def test_a_seed_that_random_numbers_cannot_take_is_a_mistake():
    assert Config(seed=2**64 - 1).problems() == []
    assert Config(seed=2**64).problems() == ["seed is 18446744073709551616: give 0 or more, below 2^64"]


@pytest.mark.parametrize("flag", [name for name, value in by_flag(Config()).items() if type(value) in (int, float)])
def test_no_number_is_more_than_a_problem(flag):
    """Whatever it is, what is checked across settings divides by none."""
    *parts, name = flag.replace("-", "_").split(".")
    for number in (0, -1, math.nan, math.inf) if type(by_flag(Config())[flag]) is float else (0, -1, 10**400):
        owner = getattr(Config(), parts[0]) if parts else Config()
        changed = replace(owner, **{name: number})
        found = (replace(Config(), **{parts[0]: changed}) if parts else changed).problems()
        assert all("give " in problem or "leave " in problem for problem in found), found


def test_no_count_is_as_large_as_2_to_the_32():
    config = Config(batch=2**32, evaluation=EvaluationConfig(batch=2**32), attack=AttackConfig(steps=2**32 - 1))
    named = ("batch", "evaluation batch")
    assert config.problems() == [f"{name} is 4294967296: give a number below 2^32" for name in named]


def test_all_mistakes_are_named_at_once():
    assert len(Config(epochs=0, batch=0, attack=AttackConfig(steps=0)).problems()) == 3


@pytest.mark.parametrize(("gpus", "procs", "expected"), [(0, 0, 1), (4, 0, 4), (0, 2, 2), (1, 0, 1)])
def test_the_number_of_processes_is_that_of_gpus_or_procs(gpus, procs, expected):
    assert Config(gpus=gpus, procs=procs).num_processes == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "here has the unknown setting epoch"),
        ({"attack": {"step": 3}}, "here has the unknown setting attack.step"),
        ({"epochs": "many"}, "epochs is 'many'"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"epochs": True}, "epochs is True"),
        ({"sync_bn": 1}, "sync_bn is 1"),
        ({"dtype": "fp8"}, "dtype is 'fp8'"),
        ({"attack": {"eps_255": "8"}}, "attack.eps_255 is '8'"),
        ({"attack": 8}, "attack is 8"),
        ({"schedule": {"milestones": [76, "91"]}}, "schedule.milestones is"),
        ({"schedule": {"milestones": 76}}, "schedule.milestones is 76"),
        ({"method": {"name": "trade"}}, "method.name is 'trade'"),
        ({"method": {"name": "trades", "gamma": 3}}, "here has the unknown setting method.gamma"),
        ({"method": {"name": ["at"]}}, "method.name is"),
        ({"method": "arat"}, "method is 'arat'"),
        ({"method": None}, "method is None"),
        ([1, 2], "here holds no configuration"),
    ],
)
def test_json_that_does_not_fit_is_refused_by_name(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        from_dict(values, "here")


def test_a_configuration_written_before_a_setting_existed_is_read_with_its_default():
    written = json.loads(to_json(recipes.recipe("digits-at")))
    for part, names in {
        "attack": ("start_scale", "project"),
        "method": ("label_smoothing",),
        "evaluation": ("eps_255",),
    }.items():
        for name in names:
            del written[part][name]
    assert from_dict(written, "here") == recipes.recipe("digits-at")


def test_settings_left_out_of_json_are_the_defaults():
    config = from_dict({"epochs": 5, "attack": {"steps": 7}, "num_train_images": None}, "here")
    assert config == Config(epochs=5, attack=AttackConfig(steps=7))


@pytest.mark.parametrize(("content", "message"), [(None, "is this a run directory"), ("{", "cannot be read")])
def test_a_run_without_a_readable_configuration_says_so(tmp_path, content, message):
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_config(file)


def test_a_written_configuration_is_read_back(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(to_json(recipes.recipe("digits-at")))
    assert load_config(file) == recipes.recipe("digits-at")
