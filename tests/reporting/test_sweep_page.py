import re
import xml.etree.ElementTree as ElementTree

from loradag.comparison.job_records import JobRecord
from loradag.comparison.ranking import settings
from loradag.reporting.sweep_figures import figures
from loradag.reporting.sweep_page import sweep_page
from tests.comparison.test_ranking import job

KEYS = ["adapter.r", "adapter.alpha", "quantize"]
GRID = [(r, a, q) for r in ("4", "8") for a in ("8", "16") for q in ("nf4", "int8")]


def grid() -> list[JobRecord]:
    return [
        job(i, 10.0 + i, adapter_r=r, adapter_alpha=a, quantize=q)
        for i, (r, a, q) in enumerate(GRID)
    ]


def test_the_page_shows_every_job_and_every_chart() -> None:
    jobs = grid()
    jobs.append(job(8, None, adapter_r="16", adapter_alpha="<b>", quantize="nf4"))
    titles = [figure.title for figure in figures(jobs, settings(jobs))]
    assert titles == [
        "Size and quality",
        "Speed and quality",
        "Perplexity by adapter.r and adapter.alpha, quantize=int8",
        "Perplexity by adapter.r and adapter.alpha, quantize=nf4",
        "Training loss",
        "Perplexity by quantize",
    ]
    page = sweep_page("a sweep", jobs, KEYS, "promote")
    assert page.count("<svg") == len(titles)
    assert "out of memory" in page
    assert "<b>" not in page  # what comes from outside is escaped
    assert "src=" not in page  # nothing is loaded


def test_a_sweep_without_results_has_a_page() -> None:
    page = sweep_page("a sweep", [job(0, None, adapter_r="4")], ["adapter.r"], "", planned=3)
    assert "0 of 3 jobs done" in page  # it was stopped
    assert "1 failed" in page
    assert "The other jobs are complete" not in page


def test_long_values_leave_the_charts_legible() -> None:
    jobs = [job(i, 10.0 + i, prepare_template=name * 300) for i, name in enumerate("ab")]
    for figure in figures(jobs, settings(jobs)):
        svg = ElementTree.fromstring(figure.picture)
        (axis,) = (line for line in svg.findall("line") if line.get("class") == "axis")
        assert float(axis.attrib["x2"]) - float(axis.attrib["x1"]) > 400, figure.title
    page = sweep_page("a sweep", jobs, ["prepare.template"], "promote")
    assert page.count('<td class="text">' + "a" * 300) == 1


def test_the_points_of_a_search_are_drawn_over_each_number() -> None:
    values = [(str(2**i), str(1e-4 * (i + 1))) for i in range(6)]
    jobs = [job(i, 10.0 + i, adapter_r=r, train_rate=rate) for i, (r, rate) in enumerate(values)]
    titles = [figure.title for figure in figures(jobs, settings(jobs))]
    assert titles[2:4] == ["Perplexity by adapter.r", "Perplexity by train.rate"]


def test_more_groups_than_colours_share_one() -> None:
    jobs = [job(i, 10.0 + i, quantize=f"q{i}") for i in range(9)]
    for figure in figures(jobs, settings(jobs)):
        assert not re.search(r'class="\w+ c\d', figure.picture), "no colour for two types"


def test_a_quant_type_has_one_colour_on_the_page() -> None:
    """Also where the options of a chart come in another order, or a chart has one of them alone."""
    jobs = grid()
    by_title = {figure.title: figure.picture for figure in figures(jobs, settings(jobs))}
    colours: dict[str, set[str]] = {}
    for title, picture in by_title.items():
        for quantize in ("nf4", "int8"):
            if title.endswith("quantize=" + quantize):
                marked = re.findall(r'class="bar (\w+)"', picture)
            else:
                dots = zip(
                    re.findall(r'class="dot (\w+)"', picture),
                    re.findall(r">([^<>]*): [\d.]+</text></g>", picture),
                    strict=True,
                )
                marked = [colour for colour, tip in dots if f"quantize={quantize}" in tip]
                lines = r'class="line (\w+) thin"[^>]*><title>[^<]*quantize=' + quantize
                marked += re.findall(lines, picture)
            colours.setdefault(quantize, set()).update(marked)
    assert colours == {"nf4": {"c0"}, "int8": {"c1"}}
    assert {"Size and quality", "Training loss", "Perplexity by quantize"} <= set(by_title)


def test_stages_that_no_job_ran_are_named() -> None:
    page = sweep_page("a sweep", grid(), KEYS, "promote")
    assert "not run: fetch, source, prepare, baseline, merge, export" in page


def test_forgetting_and_task_scores_are_shown_where_evaluate_has_them() -> None:
    jobs = grid()
    jobs[0].reports["evaluate"]["general"] = {"adapter": {"perplexity": 45.25}}
    jobs[0].reports["evaluate"]["tasks"] = {"adapter": {"local": {"acc": 0.625}}}
    page = sweep_page("a sweep", jobs, KEYS, "promote")
    for text in ("on general text", "45.25", "local: acc", "0.625"):
        assert text in page


def test_a_search_shows_its_history_what_matters_and_what_was_pruned() -> None:
    jobs = grid()
    for one in jobs:
        one.held_out = [(5, 4.0), (10, 3.0 + one.number)]
    jobs[3].pruned, jobs[3].reports = "pruned at step 10 by median: held-out loss 6", {}
    importances = {"perplexity": {"adapter.r": 0.75, "quantize": 0.25}}
    page = sweep_page("a search", jobs, KEYS, "promote", {"perplexity": "minimize"}, importances)
    for title in ("History of perplexity", "Importance for perplexity", "Held-out loss during"):
        assert f"<h3>{title}" in page
    assert "7 of 8 jobs done, 1 pruned" in page
    assert "#3 adapter.r=4 adapter.alpha=16 quantize=int8: pruned at step 10" in page
    assert "adapter.r: 75 %" in page
    assert "Pareto front</h2>" not in page
    history = re.findall(r"#(\d) [^<>]*: [\d.]+</text>", page.split("Importance for")[0])
    assert history == ["0", "1", "2", "4", "5", "6", "7"]


def test_several_objectives_show_their_pareto_front() -> None:
    jobs = grid()  # perplexity rises with the number, bytes fall
    jobs[5].adapter_bytes = 500
    objectives = {"perplexity": "minimize", "bytes": "minimize"}
    page = sweep_page("a search", jobs, KEYS, "promote", objectives)
    front = page.split("Pareto front</h2>")[1].split("</table>")[0]
    assert re.findall(r'<tr><td class="n">(\d)</td>', front) == list("0123467")
