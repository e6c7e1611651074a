"""Pages of the site that are made while it is built: from README.md and its sisters, from conf/, from the modules."""

import ast
import re
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parents[2]


def write(name: str, text: str) -> None:
    with mkdocs_gen_files.open(name, "w") as page:
        page.write(text)


def at_home(text: str) -> str:
    """Turns the links of a page at the top of the repository into links of the site; other files are named without a link."""

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, _, anchor = target.partition("#")
        mark = f"#{anchor}" if anchor else ""
        if path in PAGES:
            return f"[{label}]({PAGES[path]}{mark})"
        if path.startswith("docs/") and (ROOT / path).is_file():
            return f"[{label}]({path.removeprefix('docs/')}{mark})"
        return label if path and "://" not in path else match.group()

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, text)


def in_navigation(section: str, pages: list[str | dict[str, str]]) -> None:
    """Puts pages into an empty section of the navigation in mkdocs.yml."""
    (entry,) = (entry for entry in mkdocs_gen_files.config["nav"] if section in entry)
    entry[section] = pages


PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "docs/results": "results/summary.md",
}


def group_page(folder: Path) -> str:
    """The choices of one group of conf/, each with its file: keys, values, comments."""
    name = folder.relative_to(ROOT / "conf").as_posix()
    lines = [f"# `{name}`", ""]
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text().rstrip()
        lines += [f"## `{name}={path.stem}`", "", "```yaml", text, "```", ""]
    return "\n".join(lines)


def configuration() -> None:
    """One page for each group of conf/, and a table of them all."""
    conf = ROOT / "conf"
    folders = sorted(folder for folder in conf.rglob("*") if folder.is_dir() and any(folder.glob("*.yaml")))
    groups = [folder for folder in folders if "hydra" not in folder.relative_to(conf).parts]
    lines = [
        "# Configuration",
        "",
        "Every group, every choice; `group=choice` on the command line, `group.key=value` for a setting.",
        "",
    ]
    lines += ["| group | choices |", "|---|---|"]
    pages: list[str | dict[str, str]] = ["configuration.md"]
    for folder in groups:
        name = folder.relative_to(conf).as_posix()
        page = f"configuration/{name.replace('/', '_')}.md"
        write(page, group_page(folder))
        pages.append({name: page})
        choices = ", ".join(f"`{path.stem}`" for path in sorted(folder.glob("*.yaml")))
        lines.append(f"| [`{name}`]({page}) | {choices} |")
    lines += ["", "## What `train` begins with", "", "```yaml", (conf / "train.yaml").read_text().rstrip(), "```", ""]
    write("configuration.md", "\n".join(lines))
    in_navigation("Configuration", pages)


def results() -> None:
    """Every page of docs/results in the navigation, by its heading."""
    paths = [path for path in sorted((ROOT / "docs" / "results").glob("*.md")) if not path.stem.endswith("_notes")]
    in_navigation("Results", [{path.read_text().partition("\n")[0].lstrip("# "): f"results/{path.name}"} for path in paths])


def documented(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def reference() -> None:
    """One page for each folder of src/etude, with every module in it; and each page in the navigation."""
    package = ROOT / "src" / "etude"
    modules: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        if path.name != "__init__.py":
            modules.setdefault(path.parent.relative_to(package).as_posix(), []).append(path)
    lines = ["# Reference", "", "From the docstrings.", "", "| module | what it holds |", "|---|---|"]
    pages: list[str | dict[str, str]] = ["reference.md"]
    for folder, paths in modules.items():
        page = f"reference/{'etude' if folder == '.' else folder.replace('/', '_')}.md"
        title = "etude" if folder == "." else f"etude.{folder.replace('/', '.')}"
        parts = [f"# `{title}`", ""]
        for path in paths:
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            parts += [f"::: {name}", ""]
            lines.append(f"| [`{name}`]({page}#{name}) | {documented(path)} |")
        write(page, "\n".join(parts))
        pages.append({title: page})
    write("reference.md", "\n".join([*lines, ""]))
    in_navigation("Reference", pages)


def techniques() -> None:
    """Every technique with its effect, its settings and its reference."""
    lines = [
        "# Techniques",
        "",
        "`technique=[one,another]`: any set, in any order. `technique.NAME.key=value` sets an option.",
        "",
    ]
    for path in sorted((ROOT / "conf" / "technique").glob("*.yaml")):
        text = path.read_text().rstrip()
        found = re.search(r"_target_: *(etude\.\S+)", text)
        lines += [f"## `{path.stem}`", ""]
        if found:
            module, _, name = found.group(1).rpartition(".")
            tree = ast.parse((ROOT / "src" / f"{module.replace('.', '/')}.py").read_text())
            effect = next((ast.get_docstring(n) or "" for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), "")
            lines += [effect.partition("\n\n")[0], "", f"Reference: [{name}][{found.group(1)}].", ""]
        lines += ["```yaml", text, "```", ""]
    write("techniques.md", "\n".join(lines))


def examples() -> None:
    """Every file of docs/examples, which the tests run."""
    lines = ["# Examples", ""]
    for path in sorted((ROOT / "docs" / "examples").glob("*.py")):
        lines += [
            f"## {documented(path)}",
            "",
            f"`python docs/examples/{path.name}`",
            "",
            "```python",
            path.read_text().rstrip(),
            "```",
            "",
        ]
    write("examples.md", "\n".join(lines))


write("index.md", at_home((ROOT / "README.md").read_text()))
write("changelog.md", at_home((ROOT / "CHANGELOG.md").read_text()))
write("contributing.md", at_home((ROOT / "CONTRIBUTING.md").read_text()))
configuration()
techniques()
results()
reference()
examples()
