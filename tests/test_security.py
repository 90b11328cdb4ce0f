"""Each promise of SECURITY.md has a test that exists, and each finding that bandit is told to skip has its reason."""
import re


def test_promises_have_tests(root):
    rows = [line for line in (root / "SECURITY.md").read_text().splitlines() if line.startswith("| ") and "promise" not in line]
    assert len(rows) >= 7
    for row in rows:
        named = re.findall(r"`(tests/\w+\.py)`", row.rsplit("|", 2)[1])
        assert named and all((root / name).is_file() for name in named), row


def test_findings_are_judged(root):
    text = (root / "pyproject.toml").read_text().split("[tool.bandit]")[1].split("\n]")[0]
    for line in filter(None, text.split("skips = [\n")[1].splitlines()): assert re.fullmatch(r'    ("B\d{3}", )*"B\d{3}", # .{10,}', line), line


def test_no_remote_code_and_no_pickle_in_the_package(root):
    source = "\n".join(p.read_text() for p in (root / "responserank").rglob("*.py"))
    assert not re.search(r"trust_remote_code\s*=\s*True|\bimport pickle|pickle\.load|allow_pickle\s*=\s*True|torch\.load\(|weights_only\s*=\s*False", source)
    assert not re.search(r"\beval\(|\bexec\(|shell\s*=\s*True|os\.system\(", re.sub(r"\.eval\(", "", source))
