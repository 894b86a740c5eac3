"""A copy of the example shop in which every field has another name: nothing in the product may know one."""

import csv
import random
import re
import shutil
from pathlib import Path

_CONSTANT = re.compile(r'^([A-Z_]+) = "([^"]+)"$', re.MULTILINE)


def rename_fields(src_dir: Path, dst_dir: Path, seed: int) -> dict[str, str]:
    """Copies the shop to `dst_dir` (made here) and renames the names in names.py, accounts.csv and mask.yaml.

    Answers old name -> new name; the same seed gives the same names.
    """
    shutil.copytree(src_dir, dst_dir, ignore=shutil.ignore_patterns("__pycache__"))
    text = (dst_dir / "names.py").read_text()
    rng = random.Random(seed)
    renamed: dict[str, str] = {}
    for _, old in _CONSTANT.findall(text):
        new = "".join(rng.choices("bcdfghjklmnpqrstvwxz", k=9))
        assert old not in renamed and new not in renamed.values()
        renamed[old] = new
    (dst_dir / "names.py").write_text(_CONSTANT.sub(lambda match: f'{match[1]} = "{renamed[match[2]]}"', text))

    with (dst_dir / "accounts.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows[0] = [renamed[name] for name in rows[0]]
    with (dst_dir / "accounts.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)

    mask = (dst_dir / "mask.yaml").read_text()
    listed = re.search(r"^fields: \[(.*)\]$", mask, re.MULTILINE)
    assert listed is not None
    fields = ", ".join(renamed[name.strip()] for name in listed[1].split(","))
    (dst_dir / "mask.yaml").write_text(mask.replace(listed[0], f"fields: [{fields}]"))
    return renamed
