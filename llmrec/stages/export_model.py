"""`llmrec export --merge`: a run's model as one folder, for machines that have no run.

Merged weights and tokenizer as transformers reads them, the catalog, the prompt template, the trie,
the adapter alone, and a card that says what was measured. Names the base model by its Hub id and
commit, and no path of this machine.
"""

import hashlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from llmrec.data.files import write_json
from llmrec.errors import DataError, LlmrecError, RecipeError
from llmrec.evaluation.table import MetricTable, front_columns
from llmrec.fetch.known import MODELS, Hub
from llmrec.recipe import Recipe
from llmrec.recipe.loading import PATHS
from llmrec.recipe.systems import System
from llmrec.runs.evaluated import read_metrics
from llmrec.runs.folder import RunFolder, hub_commit

if TYPE_CHECKING:
    from llmrec.text.encoding import PromptEncoder

log = logging.getLogger("llmrec")
CARD = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def run(
    recipe: Recipe,
    folder: RunFolder,
    into: Path | None = None,
    push: str | None = None,
    system: str = "tuned",
) -> dict[str, Any]:
    """Write the model below `into`, by default the run's `export/model`; where it is and its size.

    `push`: OWNER/NAME of a repository on the Hub, made private where there is none, to which the
    folder is uploaded as well. `system`: whose weights. Raises RecipeError for what is no such name
    or system, LlmrecError without trained weights, DataError for a folder that holds other things.
    """
    from llmrec.data.catalog import Catalog
    from llmrec.inference import exported
    from llmrec.inference.from_recipe import encoder_of
    from llmrec.systems.language_models import adapter_of_system
    from llmrec.systems.serving import require_trained_prompts

    if push is not None and not REPOSITORY.fullmatch(push):
        raise RecipeError(f"--push {push}: written OWNER/NAME, as in me/my-recommender")
    wanted = System.parse(system)
    if not wanted.has_adapter or wanted.way != "ranked":
        raise RecipeError(f"--system {system}: a model that was trained, as tuned")
    trained = adapter_of_system(recipe, folder, wanted)
    if not trained.is_dir():
        raise LlmrecError(f"{trained} is not there; run `llmrec train` first")
    require_trained_prompts(recipe, folder, wanted)
    root = into or folder.root / "export" / "model"
    if root.exists() and any(root.iterdir()) and not (root / exported.FACTS).is_file():
        raise DataError(f"{root} holds other things than an exported model; name a new folder")
    catalog = Catalog.read(folder.items)
    encoder = encoder_of(recipe, catalog, folder)
    staged = root.with_name(f".{root.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        base = _base(recipe)
        _write_weights(recipe, trained, staged, base)
        encoder.tokenizer.save_pretrained(staged)
        catalog.write(staged / exported.CATALOG)
        (staged / exported.TEMPLATE).write_text(encoder.template.source, "utf-8")
        facts = _facts(recipe, folder, system, base, encoder, staged / exported.TRIE)
        write_json(staged / exported.FACTS, facts)
        card = _card(recipe, folder, facts, len(catalog))
        (staged / CARD).write_text(card, "utf-8")
        shutil.rmtree(root, ignore_errors=True)
        staged.rename(root)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    said = {"folder": str(root), "megabytes": round(size / 1e6, 1), "base": base["name"]}
    return said if push is None else {**said, "pushed": _pushed(root, push)}


def _write_weights(recipe: Recipe, trained: Path, staged: Path, base: dict[str, Any]) -> None:
    """Merged weights, and the adapter alone naming its base as the Hub does."""
    from dataclasses import replace

    from llmrec.inference.from_recipe import base_of
    from llmrec.model.loading import load_tuned

    # Merged into full weights, also where it was trained beside weights of four bits.
    model = load_tuned(replace(base_of(recipe), quantization="none"), trained)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
        adapter = staged / "adapter"
        adapter.mkdir()
        for path in (*trained.glob("adapter_*.safetensors"), trained / "adapter_config.json"):
            shutil.copyfile(path, adapter / path.name)
        config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
        config |= {"base_model_name_or_path": base["name"], "revision": base["revision"]}
        write_json(adapter / "adapter_config.json", config)
    model.config.use_cache = True
    model.save_pretrained(staged)


def _base(recipe: Recipe) -> dict[str, Any]:
    """The base model by `name` and `revision`, as the Hub knows it where it does."""
    said = recipe.model.base
    hub = (
        next((s for s in MODELS[said].sources if isinstance(s, Hub)), None)
        if said in MODELS
        else None
    )
    if hub is not None:
        return {"name": hub.repository, "revision": hub.revision, "on_hub": True}
    if Path(said).is_dir():
        return {"name": Path(said).name, "revision": None, "on_hub": False}
    return {
        "name": said,
        "revision": hub_commit(said, recipe.model.revision or "main"),
        "on_hub": True,
    }


def _facts(
    recipe: Recipe,
    folder: RunFolder,
    system: str,
    base: dict[str, Any],
    encoder: "PromptEncoder",
    trie: Path,
) -> dict[str, Any]:
    from llmrec.text import trie_files

    digest = hashlib.sha256()
    for ids in encoder.completions:
        digest.update(ids.tobytes())
    trie_files.write(encoder.trie, trie, digest.hexdigest())
    prompt = recipe.prompt.model_dump(mode="json", exclude={"file"})
    if recipe.data.candidates is not None or recipe.demonstrations is not None:
        prompt["task"] = "similar_users"
    provenance = folder.provenance(recipe)
    provenance["model"] = base
    return {
        "system": system,
        "base": base,
        "prompt": prompt,
        "filter_seen": recipe.decode.filter_seen,
        "renormalise": recipe.decode.renormalise,
        "longest_title": encoder.completions.longest,
        "trie": digest.hexdigest(),
        "recipe": _without_paths(recipe),
        "provenance": provenance,
    }


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says, files and folders of this machine by their last name alone."""
    said = recipe.model_dump(mode="json", exclude={"output_dir"}, exclude_defaults=True)
    for path in PATHS:
        section: Any = said
        for key in path[:-1]:
            section = (section or {}).get(key)
        value = (section or {}).get(path[-1])
        if isinstance(value, str) and Path(value).is_absolute():
            section[path[-1]] = Path(value).name
    return said


def _card(recipe: Recipe, folder: RunFolder, facts: dict[str, Any], items: int) -> str:
    base, provenance = facts["base"], facts["provenance"]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "llmrec"],
    }
    if base["on_hub"]:
        front["base_model"] = base["name"]
    commit = f" at commit {base['revision']}" if base["revision"] else ""
    return f"""---
{yaml.safe_dump(front, sort_keys=False).strip()}
---

# {recipe.name}

{base["name"]}{commit}, fine-tuned by llmrec {provenance["llmrec"]} to recommend from a catalog of
{items} items ({facts["system"]} weights, merged). It writes titles of the catalog behind a prompt
that lists what somebody chose; `adapter/` holds what was trained alone.

## Measured

{_measured(folder)}

## Use

```python
from llmrec.inference.exported import Exported
from transformers import AutoModelForCausalLM

exported = Exported.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
exported.recommend(model, [["a title", "another title"]], top_k=10)
```

`exported.generation(histories, top_k)` is what `generate` is given: the prompt's ids, and a logits
processor under which it writes nothing but items. `llmrec serve` answers faster and proves its
lists.

## Made from

Data: SHA-256 {provenance["data"]}. Recipe: SHA-256 {provenance["recipe"]}, which says

```yaml
{yaml.safe_dump(facts["recipe"], sort_keys=False, allow_unicode=True).strip()}
```

Seed {provenance["seed"]}, {provenance["dtype"]}; {_versions(provenance["packages"])}.
The terms of the base model and of the data hold for what was made from them.
"""


def _measured(folder: RunFolder) -> str:
    try:
        metrics = read_metrics(folder.metrics)
    except DataError:
        return "This run was not evaluated."
    table = MetricTable.from_json(metrics["table"])
    ks = sorted(metrics["evaluate"]["k"])
    k = 10 if 10 in ks else ks[-1]
    return table.only(front_columns(k)).render("markdown").strip()


def _versions(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


def _pushed(root: Path, repository: str) -> str:
    """Upload a folder; the address. Raises LlmrecError where the Hub does not take it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(root), commit_message="llmrec export")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise LlmrecError(
            f"--push {repository}: the Hub did not take it ({str(error).splitlines()[0]}); log in "
            f"with `hf auth login`. The model is in {root}"
        ) from None
    return f"https://huggingface.co/{repository}"
