"""Names of packages outside: found, loaded late, refused one at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edge_runtime.errors import FedSpineError
from edge_runtime.system.interpreter import code_command
from edge_runtime.system.registry import Registry, subclass_of

GROUP = "fedspine.tests"


Install = Callable[..., None]


class Rule:
    """The kind of object in the registry of these tests."""


class Own(Rule):
    """A rule of our own."""


REGISTRY = Registry(
    group=GROUP, kind="rule", own={"own": Own}, fits=subclass_of(Rule), expected="a Rule", error=FedSpineError
)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of one module as pip leaves it: a module, and metadata with entry points beside it."""

    def install(package: str, entries: Mapping[str, str], source: str = "") -> None:
        module = package.replace("-", "_")
        info = tmp_path / package / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        (info.parent / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(info.parent))

    return install


RULE = f"import sys\nRule = sys.modules['{__name__}'].Rule\nclass Mine(Rule): pass\n"


def test_a_name_of_our_own_needs_no_package() -> None:
    assert REGISTRY.find("own") is Own
    assert REGISTRY.package_of("own") == "fedspine"


def test_an_installed_package_adds_a_name_that_is_imported_when_it_is_asked_for(install: Install) -> None:
    install("plug-a", {"mine": "plug_a:Mine"}, RULE)

    assert REGISTRY.names() == ("mine", "own")
    assert REGISTRY.package_of("mine") == "plug-a"
    assert "plug_a" not in sys.modules
    assert REGISTRY.find("mine").__module__ == "plug_a"


def test_a_package_that_cannot_be_imported_harms_only_its_own_names(install: Install) -> None:
    install("plug-b", {"bad": "plug_b:Mine"}, "raise RuntimeError('half\\nway')")
    install("plug-c", {"good": "plug_c:Mine"}, RULE)

    with pytest.raises(FedSpineError, match=r"rule 'bad' of the package plug-b cannot be imported \(Runtime"):
        REGISTRY.find("bad")
    assert REGISTRY.find("good").__module__ == "plug_c"
    assert REGISTRY.find("own") is Own


def test_a_name_that_two_packages_offer_is_refused_and_both_are_named(install: Install) -> None:
    install("plug-d", {"same": "plug_d:Mine", "own": "plug_d:Mine"}, RULE)
    install("plug-e", {"same": "plug_e:Mine"}, RULE)

    with pytest.raises(FedSpineError, match=r"offered by two packages, plug-. and plug-.: uninstall one, or write"):
        REGISTRY.find("same")
    with pytest.raises(FedSpineError, match="rule 'own' is offered by two packages, fedspine and plug-d"):
        REGISTRY.find("own")
    assert REGISTRY.find_or_import("plug_e:Mine").__module__ == "plug_e"


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("plug_f:Missing", "cannot be imported \\(AttributeError"),
        ("plug_f:number", "is a int, expected a Rule"),
        ("plug_f:Other", "is the class Other, expected a Rule"),
        ("plug_f:Abstract", "is a class that lacks work, expected a Rule"),
        ("gone_away:Rule", "install its package, or put its folder on PYTHONPATH"),
    ],
)
def test_what_a_package_offers_is_checked(install: Install, value: str, fault: str) -> None:
    source = (
        f"{RULE}import abc\nnumber = 1\nclass Other: pass\n"
        "class Abstract(Rule, abc.ABC):\n    @abc.abstractmethod\n    def work(self): pass\n"
    )
    install("plug-f", {"wrong": value}, source)

    with pytest.raises(FedSpineError, match=f"^rule 'wrong' of the package plug-f .*{fault}"):
        REGISTRY.find("wrong")
    with pytest.raises(FedSpineError, match=f"^rule '{value}' .*{fault}"):
        REGISTRY.find_or_import(value)


@pytest.mark.parametrize("name", [":", "mod:", ":Rule", "mod:Rule()", "mod.:Rule", "os:path.join;x", "../x:Rule"])
def test_text_that_is_no_path_to_a_class_is_refused_before_any_import(name: str) -> None:
    with pytest.raises(FedSpineError, match="is not a name: expected a known one, or module:Name"):
        REGISTRY.find_or_import(name)


def test_a_name_that_came_from_elsewhere_imports_nothing_by_its_path(install: Install) -> None:
    install("plug-g", {}, RULE)

    with pytest.raises(FedSpineError, match="rule 'plug_g:Mine' is not known; known: own"):
        REGISTRY.find("plug_g:Mine")
    assert "plug_g" not in sys.modules


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(FedSpineError, match=r"^rule 'onw' is not known; did you mean 'own'\?$"):
        REGISTRY.find("onw")


def test_nothing_in_the_current_folder_is_imported(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('ran', 'w')\n")
    code = (
        "from edge_runtime.system.interpreter import keep_folder_out; keep_folder_out()\n"
        "from broker_server.methods.scheduler import scheduler_class; scheduler_class('mine:Rule')"
    )

    child = subprocess.run(code_command(code), cwd=tmp_path, capture_output=True, text=True, check=False)

    assert "scheduler 'mine:Rule' cannot be imported (ModuleNotFoundError" in child.stderr
    assert not (tmp_path / "ran").exists()
