import re
from itertools import pairwise

from loradag.reporting.run_figures import layer_figure
from tests.reporting.example import reports


def test_layers_go_by_depth_not_by_name() -> None:
    """Layer 10 is named before layer 2."""
    names = sorted(f"model.layers.{depth}.mlp.up_proj" for depth in range(12))
    layers = [{"name": name, "sqnr_db": 20.0 + at} for at, name in enumerate(names)]
    figure = layer_figure(reports()["quantize"] | {"layers": layers})
    assert figure is not None
    (places,) = re.findall(r'<polyline[^>]* points="([^"]+)"', figure.picture)
    xs = [float(place.split(",")[0]) for place in places.split()]
    assert len(xs) == 12
    assert all(before < after for before, after in pairwise(xs))
