"""What a newcomer meets first: set-up scripts, the lock, the package's layout. Nothing is installed here."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_setup(folder: Path, path: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """Runs setup.sh in an empty folder, with nothing but `path` on the PATH."""
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts/setup.sh")],
        cwd=folder, env={"PATH": path, "PYTHON": python}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def fake_python(folder: Path, version: str, *, venv: bool, pip: bool, name: str = "python3") -> Path:
    """An interpreter that says its version and whether it has venv and pip, and does nothing else."""
    script = folder / name
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  *sys.version_info*) echo {version} ;;\n"
        f"  *'import venv, ensurepip'*) exit {0 if venv else 1} ;;\n"
        f"  '-m pip --version') exit {0 if pip else 1} ;;\n"
        '  *) echo "$0 $*" >>"$(dirname "$0")/calls"; exit 9 ;;\n'
        "esac\n"
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH folder with the few system tools that set-up uses."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "cat", "rm", "dirname", "touch"):
        (folder / tool).symlink_to(shutil.which(tool) or "/bin/false")
    return folder


def test_no_python(tools: Path, tmp_path: Path) -> None:
    result = run_setup(tmp_path, str(tools))
    assert result.returncode == 1
    assert "needs Python 3.11 or 3.12" in result.stderr
    assert "apt install" in result.stderr


def test_wrong_python(tools: Path, tmp_path: Path) -> None:
    fake_python(tools, "3.9", venv=True, pip=True)
    result = run_setup(tmp_path, str(tools))
    assert result.returncode == 1
    assert "python3 (3.9)" in result.stderr


def test_missing_venv_package_is_named(tools: Path, tmp_path: Path) -> None:
    fake_python(tools, "3.11", venv=False, pip=False)
    result = run_setup(tmp_path, str(tools))
    assert result.returncode == 1
    assert "apt install python3.11-venv" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_stub_that_does_not_run_is_passed_over(tools: Path, tmp_path: Path) -> None:
    stub = tools / "python3.12"
    stub.write_text("#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n")
    stub.chmod(0o755)
    fake_python(tools, "3.11", venv=True, pip=True)
    run_setup(tmp_path, str(tools))
    assert "-m venv .venv" in (tools / "calls").read_text()


def test_python_without_venv_but_with_pip(tools: Path, tmp_path: Path) -> None:
    fake_python(tools, "3.11", venv=False, pip=True)
    run_setup(tmp_path, str(tools))
    assert "-m venv --without-pip .venv" in (tools / "calls").read_text()


def test_a_named_python_is_the_only_candidate(tools: Path, tmp_path: Path) -> None:
    fake_python(tools, "3.11", venv=True, pip=True)
    result = run_setup(tmp_path, str(tools), python=str(fake_python(tools, "3.13", venv=True, pip=True, name="other")))
    assert result.returncode == 1
    assert "other (3.13)" in result.stderr


@pytest.mark.parametrize("script", ["scripts/setup.sh", "scripts/link.sh", "scripts/browser.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize(("user", "apt"), [(0, True), (0, False), (1000, True)])
def test_a_browser_is_installed_by_root_and_asked_for_elsewhere(tools: Path, user: int, apt: bool) -> None:
    scripts = {"id": f"echo {user}", "apt-get": 'echo "$*" >>"$(dirname "$0")/calls"'}
    for name, does in scripts.items():
        if apt or name != "apt-get":
            (tools / name).write_text(f"#!/bin/sh\n{does}\n")
            (tools / name).chmod(0o755)

    def run() -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", str(ROOT / "scripts/browser.sh")]
        return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60)

    result, calls = run(), tools / "calls"
    if apt and user == 0:
        update, install = calls.read_text().splitlines()
        assert result.returncode == 0 and update.startswith("update") and "chromium" in install
    else:
        assert result.returncode == 1 and not calls.exists() and result.stderr.count("\n") == 1
        assert "install Chromium (Debian: sudo apt-get install chromium" in result.stderr
    (tools / "chromium").symlink_to("/bin/true")
    calls.unlink(missing_ok=True)
    assert run().returncode == 0 and not calls.exists()


def test_ci_script_can_be_started() -> None:
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_lock_pins_every_dependency_with_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    names = {re.split(r"[<>=\[; ]", requirement)[0].lower() for requirement in wanted}
    assert names <= pinned
    assert "setuptools" in pinned  # the editable install builds without isolation
    assert lock.count("--hash=sha256:") >= len(pinned)
    assert "://" not in lock


def test_every_package_folder_is_listed() -> None:
    """A new folder of modules that pyproject.toml does not name would be missing from wheels."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = setuptools["package-dir"]
    for name in setuptools["packages"]:
        path = ROOT / folders.get(name, name.replace(".", "/"))
        assert path.is_dir(), name
    listed = {(ROOT / folders.get(name, name.replace(".", "/"))).resolve() for name in setuptools["packages"]}
    floors = {ROOT / folder.split("/")[0] for folder in folders.values()}
    for floor in floors:
        for module in floor.rglob("*.py"):
            assert module.parent in listed, f"{module} is in no listed package"


def test_tokenizers_folder_hides_nobody() -> None:
    """Hugging Face's `tokenizers` wins for whoever stands in the repository's root."""
    assert not (ROOT / "tokenizers" / "__init__.py").exists()
    code = "import tokenizers; print(tokenizers.Tokenizer.__module__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "tokenizers", result.stderr


def test_the_checkout_can_be_imported_from_its_root() -> None:
    code = "import polysense.core.errors, polysense.apps.cli, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_licence_is_the_full_text() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert (ROOT / "NOTICE").read_text().startswith("polysense\n")
