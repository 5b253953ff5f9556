import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from loradag.compat.hydra import apply_overrides
from loradag.planning.grid import composer

CHANGED = "Hydra sets values in another way now; adapt loradag/compat/hydra.py"


@pytest.mark.parametrize(
    "override", ["adapter.r=4", "++adapter.r=4", "train.learning_rate=1e-5", "adapter.r=null"]
)
def test_values_are_set_as_hydra_sets_them_while_composing(override: str) -> None:
    with composer() as compose:
        config = compose.loader.load_configuration("config", [], RunMode.RUN)
        expected = compose.loader.load_configuration("config", [override], RunMode.RUN)
    OmegaConf.set_struct(config, True)
    apply_overrides(OverridesParser.create().parse_overrides([override]), config)
    for key in ("adapter", "train"):
        assert config[key] == expected[key], CHANGED


@pytest.mark.parametrize("override", ["adapter.rank=4", "adapter.r=four", "~adapter.rank"])
def test_an_override_that_does_not_fit_is_refused(override: str) -> None:
    with composer() as compose:
        config = compose.loader.load_configuration("config", [], RunMode.RUN)
    OmegaConf.set_struct(config, True)
    with pytest.raises(HydraException):
        apply_overrides(OverridesParser.create().parse_overrides([override]), config)
