"""The demo's page: what the evaluations wrote, in words, tables and pictures, each number beside what it must be read beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsae.demo.evidence import TOP, World, evidence
from vsae.files import read_json
from vsae.report.page import Fact
from vsae.report.results import Finding, Findings, Frame, Grid, Picture, Section, Strip, write

STRIP = 16
HEADLINE = "0.7"
COLUMNS = ("method", "candidates", f"AP > {HEADLINE}", "mean AP", "95 % interval", "mean F1", "shuffled truth")
NAMES = {
    "shape": "Shapes",
    "colour": "Colours",
    "texture": "Textures",
    "size": "Sizes",
    "background": "Backgrounds",
    "": "Groups of the above",
}


def write_page(here: Path, runs: Sequence[str]) -> Path:
    """Write here/report/index.html, whose first run is the one that is shown latent by latent."""
    world = World(here)
    first = read_json(here / "eval" / "recovery-vit" / "result.json")
    sections = [
        the_world(world),
        reconstruction(here, runs),
        recovery(here, world, runs[0], first),
        planted(here),
        other(here),
        explorer(runs[0]),
        limits(),
    ]
    lead = (
        "This is a small world whose concepts are known exactly: every scene was rendered from a table. Two tiny models were trained on other scenes of it. "
        "vsae read their activations, trained sparse dictionaries on them without any label, and measured what it found against the table.",
    )
    return write(
        here / "report",
        "Concepts of a tiny vision model, held against known answers",
        lead,
        facts(here, runs, first),
        sections,
    )


def facts(here: Path, runs: Sequence[str], found: Mapping[str, Any]) -> list[Fact]:
    methods = {method["name"]: method["recovery"] for method in found["details"]["methods"]}
    own, *_ = methods.values()
    n = len(own["attributes"])
    others = ", ".join(f"{name} {recovered(methods[name])}" for name in ("neurons", "PCA", "random directions"))
    written = read_json(here / "eval" / f"reconstruction-{runs[0]}" / "result.json")
    points = {point["name"]: point for point in written["details"]["baselines"]}
    pca = next(point for name, point in points.items() if name.startswith("PCA"))
    return [
        Fact(
            "attributes that one latent stands for",
            f"{recovered(own)} of {n}",
            f"AP > {HEADLINE} on unseen scenes; {others}",
        ),
        Fact(
            "mean AP of the best latent",
            number(own["mean_ap"]),
            f"constant score {own['mean_ap']['floor']:.2f}, perfect 1",
        ),
        Fact(
            "NMSE of the reconstruction",
            number(written),
            f"PCA of {pca['l0']:.0f} components {pca['nmse']['value']:.2f}, the mean 1, perfect 0",
        ),
        Fact(
            "same attributes, shuffled truth",
            f"{found['details']['methods'][0]['shuffled']['mean_ap']['value']:.2f}",
            "what luck reaches among as many latents",
        ),
    ]


def the_world(world: World) -> Section:
    from modalities import microworld

    pictures = [Picture(*world.picture(key)) for key in list(world.place)[:STRIP]]
    probes = {}
    for name in ("vit", "clip"):
        file = microworld.path(name) / "metrics.json"
        probes[name] = read_json(file)["probe"] if file.is_file() else {}
    rows = [
        (
            attribute,
            f"{probes['vit'][attribute]['floor']:.2f}",
            *(f"{probe[attribute]['accuracy']:.2f}" for probe in probes.values() if probe),
        )
        for attribute in probes["vit"]
    ]
    parts: list[Any] = [Strip(pictures)]
    if rows:
        note = "Of scenes of one object, measured when the models were made. In the scenes above objects overlap, light and noise vary, and captions may leave things out."
        parts.append(
            Grid(
                ("linear probe, accuracy on unseen scenes", "commonest value", "tiny ViT", "tiny CLIP"), rows, note=note
            )
        )
    words = (
        "Up to four objects of a shape, colour, texture and size stand on one of four backgrounds. The ViT is a DINOv2 with registers, the CLIP an open_clip model; "
        "both are read through the same code as their large relatives. A supervised linear probe says what there is to find in them.",
    )
    return Section("The world and the models", words, parts)


def reconstruction(here: Path, runs: Sequence[str]) -> Section:
    rows: list[tuple[str, ...]] = []
    strong: list[int] = []
    for model, what in (("vit", "ViT"), ("clip", "CLIP"), ("pairs", "CLIP, whole image")):
        mine = [run for run in runs if run.startswith(f"{model}-")]
        for place, run in enumerate(mine):
            points = read_json(here / "eval" / f"reconstruction-{run}" / "result.json")["details"]["baselines"]
            strong.append(len(rows))
            rows += [codec(what, point) for point in (points if place == len(mine) - 1 else points[:1])]
        rows.append((f"{what}: the mean of all tokens", "", "0", "1.000", "", ""))
    words = (
        "How much of a patch token's variance is lost (NMSE: 0 is perfect, 1 is what the mean alone loses) for how many active numbers (L0), on scenes no method was "
        "fitted on. PCA may use as many numbers as the SAE, k-means as many atoms.",
    )
    columns = ("tokens: method", "latents", "L0", "NMSE", "95 % interval", "silent")
    return Section("Reconstruction", words, [Grid(columns, rows, strong)])


def codec(what: str, point: Mapping[str, Any]) -> tuple[str, ...]:
    nmse, name = point["nmse"], point["name"]
    return (
        f"{what}: {name}",
        f"{point['n_latents']:,}",
        f"{point['l0']:.1f}",
        number(nmse, 3),
        spread(nmse, 3),
        f"{point['dead']:.1%}",
    )


def recovery(here: Path, world: World, run: str, found: Mapping[str, Any]) -> Section:
    methods = found["details"]["methods"]
    first = methods[0]
    others = {
        each["name"]: {one["name"]: one["ap"]["value"] for one in each["recovery"]["attributes"]}
        for each in methods[1:]
    }
    second = next((each["name"] for each in methods[1:] if each["run"]), None)
    marks = {"constant score": "share of scenes that have it"} | (
        {second.partition("-")[2]: "the other recipe"} if second else {}
    )
    baselines = {"PCA": "best component, either sign", "neurons": "best raw coordinate", "random directions": "as many"}
    pictures = evidence(here, world, run, first["recovery"]["attributes"])
    groups: dict[str, list[Finding]] = {name: [] for name in NAMES.values()}
    for one in first["recovery"]["attributes"]:
        kind, _, value = one["name"].rpartition(":")
        compared = {"constant score": one["ap"]["floor"]} | {name: others[name][one["name"]] for name in baselines}
        if second:
            compared[second.partition("-")[2]] = others[second][one["name"]]
        link = (f"latent {one['latent']}", f"explorer/index.html#{one['latent']}")
        interval = tuple(one["ap"]["interval"]) if one["ap"]["interval"] else None
        groups[NAMES[kind]].append(Finding(value, one["ap"]["value"], interval, compared, link, pictures[one["name"]]))
    n, rows = found["n"], summary(methods)
    split = found["splits"]
    words = (
        f"For each attribute the latent is chosen on {part(split['selection'])} of the scenes and judged on another {part(split['report'])} ({n['samples']:,} scenes), where it is "
        "the score 'this scene has the attribute', by its strongest patch. Average precision 1 is perfect; a score that knows nothing gets the share of scenes that have the attribute. "
        "Baselines choose in the same way. They have fewer candidates than an SAE has latents, so the table also draws as few latents at random. Groups of values, like warm colours, "
        "count as attributes of their own.",
        f"Pictures: the {TOP} unseen scenes on which the latent is strongest, bright where it speaks; a tick says that the table agrees. Click a latent to open it in the explorer, in a tab of its own.",
    )
    shown = Findings(
        "average precision of the chosen latent, with its 95 % interval",
        marks | baselines,
        {k: v for k, v in groups.items() if v},
    )
    strong = [at for at, each in enumerate(methods) if each["run"]]
    return Section("Which known attributes single latents stand for", words, [Grid(COLUMNS, rows, strong), shown])


def summary(methods: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for each in methods:
        found, luck = each["recovery"], each["shuffled"]["mean_ap"]
        of = f"{recovered(found)} of {len(found['attributes'])}"
        rows.append(
            (
                each["name"],
                f"{found['candidates']:,}",
                of,
                number(found["mean_ap"]),
                spread(found["mean_ap"]),
                number(found["mean_f1"]),
                number(luck),
            )
        )
    first = methods[0]["recovery"]
    above = round(first["share_ap"][HEADLINE]["floor"] * len(first["attributes"]))
    floor = (
        f"{above} of {len(first['attributes'])}",
        f"{first['mean_ap']['floor']:.2f}",
        "",
        f"{first['mean_f1']['floor']:.2f}",
        "",
    )
    return [*rows, ("constant score", "", *floor)]


def planted(here: Path) -> Section:
    found = read_json(here / "eval" / "planted" / "result.json")
    rows = []
    for each in found["details"]["recipes"]:
        cells = [
            f"{each[name]['value']:.2f} (before training {each[name]['floor']:.2f})"
            for name in ("matched", "recovered")
        ]
        rows.append((each["name"], *cells, f"{each['unmatched']['value']:.2f}", f"{each['nmse']['value']:.3f}"))
    world = found["fingerprint"]["data"]
    words = (
        f"The instrument itself, on rows made of {world['n_features']} known directions in {world['d_model']} dimensions, {world['active']:g} of them at a time. The answer is known: a "
        "perfect dictionary matches every direction with cosine 1. The floor is the same dictionary before training, which for ra_topk starts from points of the data.",
    )
    columns = ("recipe", "mean matched cosine", "share of directions found (cosine > 0.9)", "unmatched pairs", "NMSE")
    return Section("A dictionary that is known", words, [Grid(columns, rows)])


def other(here: Path) -> Section:
    grids = []
    for read in ("clip", "pairs"):
        methods = read_json(here / "eval" / f"recovery-{read}" / "result.json")["details"]["methods"]
        grids.append(Grid(COLUMNS, summary(methods), [at for at, each in enumerate(methods) if each["run"]]))
    words = (
        "The same question twice more. First table: patch tokens of the CLIP's image tower after its last block. Second: a VL-SAE, which codes the embedding of a whole image and that of "
        "its caption with one set of latents; here it is asked about images alone. One vector stands for all objects of a scene, and no latent can find its attribute on a patch of its own.",
    )
    return Section("The same in the tiny CLIP, and in its pairs", words, grids)


def explorer(run: str) -> Section:
    words = (
        f"Every latent of {run}: what it responds to, where in the scene, and what fires with it. Arrow keys move, / searches, h hides the heat maps.",
    )
    return Section("Explorer", words, [Frame("explorer/index.html", "explorer")])


def limits() -> Section:
    words = (
        "One seed of one small world. Which recipe is better is not decided here: the intervals are over scenes, not over trainings.",
        "The tiny models learnt from a teacher that was given the table's labels, so attributes are easier to find in them than in a model trained on photos. That makes "
        "a broken pipeline visible; it says nothing about how well dictionaries of real models do.",
        "A latent that no attribute chose is not shown to be meaningless, and an attribute with a high AP need not be what the latent means to the model: nothing was edited here.",
        "Scenes hold up to four objects, and a scene is scored by one patch; common values such as sizes are true of most scenes, which is why their constant score is high.",
    )
    return Section("What this does not show", words)


def recovered(found: Mapping[str, Any]) -> int:
    return round(found["share_ap"][HEADLINE]["value"] * len(found["attributes"]))


def number(estimate: Mapping[str, Any], digits: int = 2) -> str:
    return "undefined" if estimate["value"] is None else f"{estimate['value']:.{digits}f}"


def spread(estimate: Mapping[str, Any], digits: int = 2) -> str:
    return (
        f"{estimate['interval'][0]:.{digits}f} to {estimate['interval'][1]:.{digits}f}" if estimate["interval"] else ""
    )


def part(split: Mapping[str, Any]) -> str:
    low, high = split["select"]["part"]
    return f"{high - low:.0%}"
