"""Gather the definitions of the published benchmark (MIT, notice in LICENSE) into this folder's two files.

Usage: ``python make_definitions.py RESOURCES`` with the folder that holds the benchmark's item map, CCS codes,
subject splits, channel and discretiser settings and variable ranges.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    """Write definitions.json (what is read by eye) and definitions.npz (what is long)."""
    items = list(csv.DictReader((folder / "itemid_map.csv").open(encoding="utf-8")))
    settings = json.loads((folder / "discretizer_config.json").read_text("utf-8"))
    channels = json.loads((folder / "channel_info.json").read_text("utf-8"))
    variables = settings["id_to_channel"]
    ranges = {row["LEVEL2"].lower(): row for row in csv.DictReader((folder / "variable_ranges.csv").open())}
    names = ("OUTLIER LOW", "VALID LOW", "VALID HIGH", "OUTLIER HIGH")
    columns = ("VARIABLE", "MIMIC_LABEL", "UNIT", "TABLE", "SOURCE")
    definitions = {
        "variables": {
            name: {
                "categories": settings["possible_values"][name],
                "levels": channels[name].get("values", {}),
                "normal": settings["normal_values"][name],
                "range": [float(ranges[name.lower()][column] or "nan") for column in names],
            }
            for name in variables
        },
        "items": [[int(row["ITEMID"]), *(row[c] for c in columns)] for row in items],
        "diagnosis_codes": (folder / "diagnosis_codes_128.txt").read_text().split(),
    }
    text = json.dumps(definitions, indent=1, ensure_ascii=False)
    (HERE / "definitions.json").write_text(text + "\n", encoding="utf-8")
    codes = list(csv.DictReader((folder / "ccs_codes.csv").open(encoding="utf-8")))
    groups = sorted({row["GROUP"] for row in codes})
    used = {row["GROUP"] for row in codes if row["USE"] == "1"}
    subjects: dict[str, Any] = {
        f"{part}_subjects": np.array((folder / f"{part}_subjects.txt").read_text().split(), dtype=np.int32)
        for part in ("train", "val", "test")
    }
    states = json.loads((folder / "normalizer_states.json").read_text("utf-8"))
    np.savez_compressed(
        HERE / "definitions.npz",
        codes=np.array([row["ICD9_CODE"] for row in codes], dtype="S"),
        code_groups=np.array([groups.index(row["GROUP"]) for row in codes], dtype=np.int16),
        groups=np.array(groups),
        used=np.array([group in used for group in groups]),
        normalizers=np.array([_short(name) for name in states]),
        normalizer_states=np.array([[state["means"], state["stds"]] for state in states.values()]),
        **subjects,
    )


def _short(name: str) -> str:
    """Return "ihm_0.8" for "ihm_ts0.8.input_str-previous...."."""
    task, rest = name.split("_ts")
    return f"{task}_{float(rest.split('.input')[0]):g}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
