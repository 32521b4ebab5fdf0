"""The layers of raftd: which package may import which, and that every rule has its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMON = {"raftd", "raftd.errors", "raftd.limits", "raftd.note", "raftd.histogram"}
_NODE = {"raftd.node", "raftd.raft", "raftd.jobs", "raftd.storage", "raftd.wire"}
#: Each package of raftd, and each module beside them: what of raftd it may import, and whether it may import Twisted.
PACKAGES: dict[str, tuple[set[str], bool]] = {
    "raftd.limits": (set(), False),
    "raftd.errors": (set(), False),
    "raftd.note": (set(), False),
    "raftd.histogram": (set(), False),
    "raftd.config": (set(), False),
    "raftd.passwords": (set(), False),
    "raftd.raft": ({"raftd.raft"}, False),
    "raftd.jobs": ({"raftd.jobs"}, False),
    "raftd.wire": (
        {
            *("raftd.wire", "raftd.raft.messages", "raftd.raft.outcomes"),
            *("raftd.jobs.commands", "raftd.jobs.asks", "raftd.jobs.replies", "raftd.jobs.policy", "raftd.jobs.rights"),
        },
        False,
    ),
    "raftd.storage": ({"raftd.storage", "raftd.raft.messages", "raftd.raft.membership", "raftd.raft.ready"}, False),
    "raftd.node": (_NODE, False),
    "raftd.sim": ({"raftd.sim", "raftd.client.core", "raftd.client.retry", *_NODE}, True),
    "raftd.client.deferred": ({"raftd.client", "raftd.wire", "raftd.jobs.asks", "raftd.jobs.replies"}, True),
    "raftd.client": ({"raftd.client", "raftd.wire", "raftd.jobs.asks", "raftd.jobs.replies", "raftd.jobs.policy"}, False),
    "raftd.work": ({"raftd.work", "raftd.client"}, False),
    "raftd.server": ({"raftd.server", "raftd.client", "raftd.config", "raftd.passwords", *_NODE}, True),
    "raftd.bench": ({"raftd.bench", "raftd.cli", "raftd.client", "raftd.config", "raftd.sim", *_NODE}, True),
    "raftd.cli": (
        {
            "raftd.cli",
            "raftd.bench",
            "raftd.client",
            "raftd.work",
            "raftd.config",
            "raftd.passwords",
            "raftd.server.certificates",
            "raftd.sim",
            *_NODE,
        },
        True,
    ),
    "raftd.__main__": ({"raftd.cli"}, False),
    "raftd.tap": ({"raftd.server", "raftd.config"}, True),
}
PURE = (
    "raftd.raft",
    "raftd.jobs",
    "raftd.wire",
    "raftd.histogram",
    "raftd.note",
    "raftd.node.gateway",
    "raftd.node.session",
    "raftd.node.client_session",
    "raftd.node.reads",
    "raftd.node.admission",
    "raftd.node.admin",
    "raftd.node.disk_space",
    "raftd.node.backups",
    "raftd.node.job_events",
    "raftd.node.series",
    "raftd.node.statuses",
)
IMPURE_MODULES = {"os", "sys", "socket", "time", "threading", "subprocess", "asyncio", "select", "secrets", "uuid", "pickle"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / "raftd").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    found = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"{path}: relative import"
            found |= {f"{item.module}.{alias.name}" if f"{item.module}.{alias.name}" in MODULES else item.module for alias in item.names}
    return found


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    if module == "raftd":
        assert not imports(MODULES[module])
        return
    package = max((package for package in PACKAGES if is_in(module, package)), key=len)
    allowed, knows_twisted = PACKAGES[package]
    for imported in imports(MODULES[module]):
        if is_in(imported, "raftd"):
            assert imported in COMMON or any(is_in(imported, other) for other in allowed), f"{module} imports {imported}"
        if is_in(imported, "twisted") or is_in(imported, "zope"):
            assert knows_twisted, f"{module} imports {imported}"
        assert imported not in ("twisted.internet", "twisted.internet.reactor") or package in (
            "raftd.server",
            "raftd.cli",
            "raftd.bench",
            "raftd.client.deferred",
        ), f"{module} knows a reactor"
        assert imported.split(".")[0] != "pickle"


@pytest.mark.parametrize("module", [module for module in MODULES if any(is_in(module, package) for package in PURE)])
def test_pure_packages_know_no_clock_file_socket_or_global_random(module):
    path = MODULES[module]
    for imported in imports(path):
        assert imported.split(".")[0] not in IMPURE_MODULES, f"{module} imports {imported}"
    text = path.read_text()
    assert not re.search(r"\.(now|utcnow|today)\(", text), f"{module} asks datetime for the time"
    assert "random." not in text.replace("self._random.", ""), f"{module} uses the global random"
    assert not re.search(r"\bopen\(", text.replace("_open(", "")), f"{module} opens a file"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: {imported for imported in imports(path) if imported in MODULES} for module, path in MODULES.items()}
    while leaves := {module for module, imported in graph.items() if not imported & graph.keys() - {module}}:
        graph = {module: imported for module, imported in graph.items() if module not in leaves}
    assert not graph


@pytest.mark.parametrize("module", [module for module in MODULES if is_in(module, "raftd.sim") and module != "raftd.sim.mutants"])
def test_the_simulator_uses_no_private_attribute_of_another_object(module):
    """A mutant breaks what it likes; the checks must be able to see what they need."""
    for item in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(item, ast.Attribute) and item.attr.startswith("_") and not item.attr.startswith("__"):
            owner = item.value.id if isinstance(item.value, ast.Name) else ""
            assert owner in ("self", "cls", "Model", "copy"), f"{module} uses {ast.unparse(item)}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_opens_with_its_idea(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


#: The first three translate messages of msgspec for people; the others compare names of faults and events.
MAY_COMPARE_TEXTS = {
    "raftd.config",
    "raftd.server.http.routes",
    "raftd.wire.policy",
    "raftd.sim.clients",
    "raftd.sim.seed",
    "raftd.sim.faults",
    "raftd.sim.swarm",
}
_WORDS = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,}")


def compared_texts(path: Path) -> list[str]:
    """Texts of two words or more that are compared with something, and exceptions whose text is."""
    found = []
    for item in ast.walk(ast.parse(path.read_text())):
        compared: list[ast.expr] = []
        if isinstance(item, ast.Compare):
            compared = [item.left, *item.comparators]
        elif isinstance(item, ast.Call) and isinstance(item.func, ast.Attribute) and item.func.attr in ("startswith", "endswith"):
            compared = [*item.args, item.func.value]
        for one in compared:
            if isinstance(one, ast.Constant) and isinstance(one.value, str) and _WORDS.search(one.value):
                found.append(one.value)
            elif (isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == "str") or (
                isinstance(one, ast.Attribute) and one.attr in ("reason", "text")
            ):
                found.append(ast.unparse(one))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_code_compares_messages(module):
    """Outcomes are enums: `"is not known" in reason` once chose an HTTP status."""
    assert module in MAY_COMPARE_TEXTS or not compared_texts(MODULES[module])


@pytest.mark.parametrize("number", range(1, 36))
def test_every_rule_has_a_test_of_its_name(number):
    pattern = re.compile(rf"def test_r{number:02d}_\w+|^# R{number}\b", re.MULTILINE)
    assert any(pattern.search(path.read_text()) for path in (ROOT / "tests").rglob("*.py"))


@pytest.mark.parametrize("name", [*(f"R{number}" for number in range(1, 36)), *(f"I{number}" for number in range(1, 25))])
def test_every_rule_and_invariant_is_documented(name):
    assert f"\n- **{name}**: " in (ROOT / "docs" / "rules.md").read_text()


def test_documents_refer_only_to_files_that_exist():
    text = "\n".join(path.read_text() for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    for path in re.findall(r"`((?:raftd|tests|docs|conf)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).exists(), path
