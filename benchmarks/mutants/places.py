"""Places in the code, mistakes to put there, and the tests that have to find them."""

from __future__ import annotations

__all__ = ["MUTANTS", "Mutant"]

from typing import NamedTuple


class Mutant(NamedTuple):
    """A mistake in one place."""

    broken: str
    """The mistake, in words."""
    file: str
    """The file, which holds the place once."""
    old: str
    """The place."""
    new: str
    """The text in its place."""
    tests: str
    """The tests that run, files or single ones, with spaces between them."""


FILES, FOLDER = "mmpoe/training/files.py", "mmpoe/training/folder.py"
CHECKPOINT, STEPS = "mmpoe/training/checkpoint.py", "mmpoe/training/steps.py"
PROCESSES, CACHE = "mmpoe/training/processes.py", "mmpoe/kernels/_cache.py"
GAUSSIAN, REFERENCE = "mmpoe/gaussian.py", "mmpoe/kernels/_reference.py"
SCORING, MIXTURES = "mmpoe/likelihoods/_scoring.py", "mmpoe/objectives/mixtures.py"
MRI_US = "examples/medical_mri_us"

MUTANTS = [
    # files that are whole or not there
    Mutant(
        "a file written in place",
        FILES,
        '            with temporary.open("wb") as file:',
        '            with path.open("wb") as file:',
        "tests/training/test_files.py::test_files_are_on_the_disk_before_they_have_their_names",
    ),
    Mutant(
        "a file renamed before it is on the disk",
        FILES,
        "                os.fsync(file.fileno())\n",
        "",
        "tests/training/test_files.py::test_files_are_on_the_disk_before_they_have_their_names",
    ),
    Mutant(
        "the name of a file not brought to the disk",
        FILES,
        "        temporary.unlink(missing_ok=True)\n    _sync(path.parent)\n",
        "        temporary.unlink(missing_ok=True)\n",
        "tests/training/test_files.py::test_files_are_on_the_disk_before_they_have_their_names",
    ),
    Mutant(
        "a checkpoint named before its files are on the disk",
        FILES,
        "    _sync(temporary)\n    temporary.replace(folder)",
        "    temporary.replace(folder)",
        "tests/training/test_files.py::test_files_are_on_the_disk_before_they_have_their_names",
    ),
    Mutant(
        "an old checkpoint removed under its name",
        FILES,
        "    path.replace(doomed)\n    shutil.rmtree(doomed)",
        "    shutil.rmtree(path)",
        "tests/reliability/test_checkpoints.py::test_a_save_that_is_cut_short_leaves_whole_checkpoints",
    ),
    Mutant(
        "weights replaced before their description",
        CHECKPOINT,
        '        both = json.dumps({**new, "previous": previous}, indent=2)\n'
        "        write_file(folder / DESCRIPTION, both.encode())",
        "        pass",
        "tests/training/test_checkpoint.py::test_a_save_that_is_stopped_leaves_the_old_checkpoint_or_the_new",
    ),
    Mutant(
        "the best checkpoint removed",
        FOLDER,
        "{*steps[-2:], step, best}",
        "{*steps[-2:], step}",
        "tests/reliability/test_checkpoints.py::test_the_last_two_and_the_best_are_kept",
    ),
    Mutant(
        "one checkpoint kept",
        FOLDER,
        "{*steps[-2:], step, best}",
        "{*steps[-1:], step, best}",
        "tests/reliability/test_checkpoints.py::test_the_last_two_and_the_best_are_kept",
    ),
    Mutant(
        "the JSON of a synthesis named first",
        f"{MRI_US}/synthesis/files.py",
        'made = [*files, f"{name}.png", f"{name}.json"]',
        'made = [f"{name}.json", *files, f"{name}.png"]',
        "tests/examples/test_synthesize.py::test_files_get_their_names_with_the_json_last",
    ),
    Mutant(
        "the JSON of an earlier synthesis left",
        f"{MRI_US}/synthesis/files.py",
        '    (folder / f"{name}.json").unlink(missing_ok=True)\n',
        "",
        "tests/examples/test_synthesize.py::test_files_get_their_names_with_the_json_last",
    ),
    Mutant(
        "an evaluation that is half new",
        f"{MRI_US}/evaluation/files.py",
        '    (out / "cells.json").unlink(missing_ok=True)  # what is half new says nothing\n',
        "",
        "tests/examples/test_evaluation.py::test_an_evaluation_that_is_half_written_is_none",
    ),
    # checksums
    Mutant(
        "the SHA-256 of weights not checked",
        CHECKPOINT,
        '    if entry["sha256"] != found:\n',
        "    if False:\n",
        "tests/training/test_checkpoint.py::test_damaged_checkpoints_are_refused",
    ),
    Mutant(
        "the SHA-256 of a description not checked",
        CHECKPOINT,
        "if SEAL in entry and entry[SEAL] != _seal(entry):",
        "if False:",
        "tests/training/test_checkpoint.py::test_no_bit_of_a_description_flips_unnoticed",
    ),
    Mutant(
        "the SHA-256 of a state not checked",
        CHECKPOINT,
        '    if digest(content) != head["sha256"]:\n',
        "    if False:\n",
        "tests/training/test_checkpoint.py::test_no_bit_of_the_tensors_of_a_state_flips_unnoticed",
    ),
    Mutant(
        "the format of a state not checked",
        CHECKPOINT,
        '(_is_description(head) and head.get("format") == FORMAT)',
        "_is_description(head)",
        "tests/reliability/test_checkpoints.py::test_other_formats_are_refused",
    ),
    Mutant(
        "the manifest not compared",
        FOLDER,
        "if len(content) != size or digest(content) != sha256:",
        "if len(content) != size:",
        "tests/reliability/test_checkpoints.py::test_every_flipped_bit_is_noticed",
    ),
    Mutant(
        "a manifest that names no file",
        FOLDER,
        "if absent := [name for name in FILES if name not in entries]:",
        "if absent := []:",
        "tests/reliability/test_checkpoints.py::test_a_manifest_that_names_no_file_vouches_for_none",
    ),
    Mutant(
        "the modalities of a checkpoint not compared",
        CHECKPOINT,
        "        elif key not in found or not _is_same(found[key], value):",
        "        elif key not in found:",
        "tests/reliability/test_checkpoints.py::test_other_modalities_are_refused_with_both_lists",
    ),
    Mutant(
        "a compressed image that is incomplete",
        f"{MRI_US}/data/foreign.py",
        '        if not stream.eof:\n            raise ValueError("its compressed part is incom',
        '        if False:\n            raise ValueError("its compressed part is incom',
        "tests/reliability/test_images_and_index.py::test_a_truncated_file_of_any_format",
    ),
    Mutant(
        "the checksum of a compressed image not checked",
        f"{MRI_US}/data/foreign.py",
        "        stream = zlib.decompressobj(AUTOMATIC)\n        try:\n"
        "            parts.append(stream.decompress(content, limit - size + 1))\n",
        "        stream = zlib.decompressobj(AUTOMATIC)\n        try:\n"
        "            parts.append(stream.decompress(content[:-8], limit - size + 1))\n"
        '            return b"".join(parts)\n',
        "tests/reliability/test_foreign_images.py::test_every_flipped_bit_is_found",
    ),
    # the cache of compiled kernels, and locks
    Mutant(
        "a cache of somebody else trusted",
        CACHE,
        "status.st_uid == os.geteuid() and ",
        "",
        "tests/kernels/test_cache.py::test_what_others_could_have_written_is_not_used",
    ),
    Mutant(
        "a cache that a group may write trusted",
        CACHE,
        "stat.S_IWGRP | ",
        "",
        "tests/kernels/test_cache.py::test_what_others_could_have_written_is_not_used",
    ),
    Mutant(
        "a cache that is a link trusted",
        CACHE,
        " | os.O_NOFOLLOW)",
        ")",
        "tests/kernels/test_cache.py::test_what_others_could_have_written_is_not_used",
    ),
    Mutant(
        "a compiled kernel not compared with its name",
        CACHE,
        "if content is not None and file == _name(start, content, suffix):",
        "if content is not None:",
        "tests/kernels/test_cache.py::test_what_does_not_hold_what_its_name_says_is_built_again",
    ),
    Mutant(
        "a folder that is not locked",
        FILES,
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/training/test_files.py::test_a_lock_is_held_by_one_at_a_time",
    ),
    Mutant(
        "a lock that several may hold",
        FILES,
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "tests/training/test_files.py::test_a_lock_is_held_by_one_at_a_time",
    ),
    Mutant(
        "a lock that is a link followed",
        FILES,
        "os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK",
        "os.O_RDWR | os.O_CREAT | os.O_NONBLOCK",
        "tests/training/test_files.py::test_a_lock_that_is_no_file_of_its_own_is_refused",
    ),
    # training
    Mutant(
        "SIGTERM not handled",
        PROCESSES,
        "    for number in SIGNALS:\n        signal.signal(number, note)\n",
        "    signal.signal(signal.SIGINT, note)\n",
        "tests/reliability/test_resume.py::test_signals_end_a_program_after_its_step_with_a_checkpoint",
    ),
    Mutant(
        "a second signal noted, too",
        PROCESSES,
        "        heard.append(number)\n        restore()\n",
        "        heard.append(number)\n",
        "tests/reliability/test_resume.py::test_a_second_signal_acts_at_once",
    ),
    Mutant(
        "the exit code of a signal",
        "mmpoe/training/run.py",
        "else 128 + self.signal",
        "else self.signal",
        "tests/reliability/test_resume.py::test_handlers_are_as_before",
    ),
    Mutant(
        "a step with a loss that is not finite",
        STEPS,
        "if all(map(math.isfinite, [*losses, *norms])):",
        "if all(map(math.isfinite, norms)):",
        "tests/training/test_steps.py::test_a_bound_that_is_not_finite_is_skipped_even_if_its_gradient_is",
    ),
    Mutant(
        "a step with a gradient that is not finite",
        STEPS,
        "if all(map(math.isfinite, [*losses, *norms])):",
        "if all(map(math.isfinite, losses)):",
        "tests/training/test_steps.py::test_a_gradient_that_is_not_finite_is_skipped_even_if_its_bound_is",
    ),
    Mutant(
        "skipped steps in a row never counted afresh",
        STEPS,
        "            self.row = 0\n",
        "",
        "tests/training/test_steps.py",
    ),
    Mutant(
        "an optimiser that is not restored",
        STEPS,
        '        self.optimizer.load_state_dict(state["optimizer"])\n',
        "",
        "tests/reliability/test_resume.py::test_resumed_weights_are_the_same_to_the_last_bit",
    ),
    Mutant(
        "discriminators that learn from the model's loss",
        STEPS,
        "        p.requires_grad_(False)\n",
        "        pass\n",
        "tests/training/test_steps.py",
    ),
    # masks
    Mutant(
        "entries that are missing read",
        "mmpoe/missing/masks.py",
        "    return torch.where(observed.reshape(-1, *(1,) * (x.dim() - 1)), x, 0)",
        "    return x * observed.reshape(-1, *(1,) * (x.dim() - 1))",
        "tests/missing/test_collate.py::test_fill_selects",
    ),
    Mutant(
        "entries that are not scored read",
        SCORING,
        "    target = widen(x if scored is None else fill(x, scored))",
        "    target = widen(x)",
        "tests/models/test_contract.py::test_missing_slots_change_no_bit_of_loss_or_gradients",
    ),
    Mutant(
        "elements out of view scored",
        SCORING,
        "torch.where(valid, elements.log_prob(torch.where(valid, x, 0)), 0)",
        "elements.log_prob(torch.where(valid, x, 0))",
        "tests/models/test_contract.py::test_valid_elements_alone_are_scored",
    ),
    Mutant(
        "NaN where something was observed let through",
        SCORING,
        "        check_finite(x, scored, modality, valid)\n",
        "",
        "tests/models/test_inputs.py::test_nan_where_it_is_scored_is_an_error",
    ),
    Mutant(
        "what was not observed scored",
        "mmpoe/objectives/bounds.py",
        "        seen = scored[:, column]\n",
        "        seen = torch.ones_like(scored[:, column])\n",
        "tests/models/test_contract.py::test_missing_slots_change_no_bit_of_loss_or_gradients",
    ),
    Mutant(
        "columns in the order of names",
        "mmpoe/missing/masks.py",
        "torch.tensor([m in names for m in modalities], dtype=torch.bool)",
        "torch.tensor([m in names for m in sorted(modalities)], dtype=torch.bool)",
        "tests/missing/test_collate.py::test_as_mask",
    ),
    Mutant(
        "columns of a batch in the order of the samples",
        "mmpoe/models/core.py",
        "return partial(collate, modalities=list(self.modalities))",
        "return partial(collate)",
        "tests/models/test_contract.py::test_models_collate_in_their_own_order",
    ),
    Mutant(
        "subsets of what was not observed",
        "mmpoe/missing/subsets.py",
        "    return members[:, None] & inside[..., None], inside",
        "    return members[:, None].expand(-1, observed.shape[0], -1), inside",
        "tests/missing/test_subsets.py::test_no_subset_holds_what_was_not_observed_whatever_it_weighs",
    ),
    # the algebra
    Mutant(
        "precisions that do not add",
        GAUSSIAN,
        "torch.where(empty, 1, weight.sum(dim=0))",
        "torch.where(empty, 1, weight.mean(dim=0))",
        "tests/test_gaussian.py::test_p4_p5_precisions_and_natural_means_add",
    ),
    Mutant(
        "an expert that is masked multiplied",
        GAUSSIAN,
        "log_precision = torch.where(mask, log_precision, -torch.inf)",
        "log_precision = torch.where(mask, log_precision, 0)",
        "tests/test_gaussian.py::test_p3_masked_and_flat_experts_change_no_bit",
    ),
    Mutant(
        "the divergence the other way round",
        GAUSSIAN,
        "exp_minus_tangent(2 * (log_scale - prior_log_scale))",
        "exp_minus_tangent(2 * (prior_log_scale - log_scale))",
        "tests/test_gaussian.py::test_k2_divergence_is_that_of_torch",
    ),
    Mutant(
        "precisions that do not add, in the reference of the kernels",
        REFERENCE,
        "total, moment = total + ratio, moment + ratio * offset",
        "total, moment = torch.maximum(total, ratio), moment + ratio * offset",
        "tests/kernels/test_operation.py::test_equals_the_algebra_it_fuses",
    ),
    Mutant(
        "the sign of the divergence, in the reference of the kernels",
        REFERENCE,
        "exp_minus_tangent(-2 * delta / power)",
        "exp_minus_tangent(2 * delta / power)",
        "tests/kernels/test_operation.py::test_equals_the_algebra_it_fuses "
        "tests/kernels/test_operation.py::test_k3_divergence_from_the_prior",
    ),
    Mutant(
        "an expert that is not given read, in the reference of the kernels",
        REFERENCE,
        "squash(torch.where(seen, loc, 0))",
        "squash(loc)",
        "tests/kernels/test_operation.py::test_what_is_not_given_changes_no_bit_of_results_and_gradients",
    ),
    Mutant(
        "the sign of the divergence in the bound",
        "mmpoe/objectives/bounds.py",
        "    bound = -penalty(output.kl, beta)",
        "    bound = penalty(output.kl, beta)",
        "tests/models/test_contract.py::test_beta_weighs_the_divergence",
    ),
    Mutant(
        "a mean of samples in place of their sum",
        MIXTURES,
        "    bound = log_w.logsumexp(dim=0) - math.log(samples)",
        "    bound = log_w.mean(dim=0)",
        "tests/objectives/test_mixtures.py::test_importance_weights_have_densities_of_whole_hierarchies",
    ),
    Mutant(
        "powers of experts that are not renormalised",
        "mmpoe/posteriors/products.py",
        "torch.where(given, log_powers - total[:, None], 0)",
        "torch.where(given, log_powers, 0)",
        "tests/posteriors/test_contract.py tests/posteriors/test_products.py",
    ),
    # gradients that stop
    Mutant(
        "the score of a posterior not taken away",
        MIXTURES,
        "        log_q = log_q - (score - score.detach())\n",
        "",
        "tests/objectives/test_gradients.py::test_no_gradient_is_left_where_the_posterior_is_exact",
    ),
    Mutant(
        "shares of samples that have a gradient",
        MIXTURES,
        "        factor.copy_(1 - beta + beta * share)\n",
        "        factor.copy_(1 - beta + beta * share.sqrt())\n",
        "tests/objectives/test_gradients.py::test_dreg_is_unbiased_for_components",
    ),
    Mutant(
        "a discriminator's loss that reaches the model",
        "mmpoe/adversarial/terms.py",
        "torch.cat([real, fake.detach()])",
        "torch.cat([real, fake])",
        "tests/adversarial/test_terms.py::test_the_two_sides_leave_each_other_alone",
    ),
    Mutant(
        "a model's loss that reaches the discriminators",
        "mmpoe/adversarial/terms.py",
        "{name: p.detach() for name, p in discriminator.named_parameters()}",
        "dict(discriminator.named_parameters())",
        "tests/adversarial/test_terms.py::test_the_two_sides_leave_each_other_alone",
    ),
    Mutant(
        "a state that is not detached for matched experts",
        "mmpoe/hierarchy.py",
        "            h = None if h is None else h.detach()\n",
        "",
        "tests/imputation/test_calibration.py::test_inference_by_matched_experts_passes_no_gradient_on",
    ),
    Mutant(
        "encodings that are not detached for matched experts",
        "mmpoe/hierarchy.py",
        "            encodings = encodings.detach()\n",
        "",
        "tests/imputation/test_calibration.py::test_inference_by_matched_experts_passes_no_gradient_on",
    ),
    Mutant(
        "trained experts that draw in place of matched ones",
        "mmpoe/models/core.py",
        'return "matched" if self.is_matched else "trained"',
        'return "trained"',
        "tests/imputation/test_draws.py::test_matched_experts_are_used",
    ),
    # data and text from outside
    Mutant(
        "code of others imported by a saved model",
        "mmpoe/models/_saving.py",
        '            if not any(module == t or module.startswith(f"{t}.") for t in trusted):\n',
        "            if False:\n",
        "tests/models/test_saving.py::test_a_folder_calls_nothing_that_is_not_trusted",
    ),
    Mutant(
        "a patient in two splits",
        f"{MRI_US}/data/index.py",
        "        if other.split != case.split:\n",
        "        if False:\n",
        "tests/reliability/test_images_and_index.py::test_one_patient_in_two_splits",
    ),
    Mutant(
        "files outside the folder of an index",
        f"{MRI_US}/data/index.py",
        "        if not anywhere and not found.is_relative_to(root):\n",
        "        if False:\n",
        "tests/reliability/test_images_and_index.py::test_a_path_that_leaves_the_folder",
    ),
    Mutant(
        "text of pages not escaped",
        f"{MRI_US}/writing/html.py",
        "return html.escape(str(content), quote=False)",
        "return str(content)",
        "tests/examples/test_writing.py::test_html_says_what_it_was_given",
    ),
    Mutant(
        "attributes of pages not escaped",
        f"{MRI_US}/writing/html.py",
        "text = html.escape(str(value), quote=True)",
        "text = html.escape(str(value), quote=False)",
        "tests/examples/test_writing.py::test_html_says_what_it_was_given",
    ),
    Mutant(
        "text in scripts not escaped",
        f"{MRI_US}/writing/html.py",
        '.replace("<", "\\\\u003c")',
        "",
        "tests/examples/test_writing.py::test_data_for_scripts_is_read_as_it_was",
    ),
    Mutant(
        "text in Markdown not escaped",
        f"{MRI_US}/writing/markdown.py",
        "return value if isinstance(value, Markdown) else _escaped(str(value))",
        "return str(value)",
        "tests/examples/test_writing.py::test_cells_and_code_stay_within_themselves",
    ),
    Mutant(
        "line breaks in Markdown",
        f"{MRI_US}/writing/markdown.py",
        '    return re.sub(r"[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]+", " ", text)',
        "    return text",
        "tests/examples/test_writing.py::test_markdown_says_what_it_was_given_on_one_line",
    ),
    Mutant(
        "formulas in CSV",
        f"{MRI_US}/writing/spreadsheet.py",
        'FORMULA = ("=", ',
        "FORMULA = (",
        "tests/examples/test_writing.py::test_no_cell_begins_like_a_formula_but_numbers",
    ),
    Mutant(
        "output that cannot be shown an error",
        f"{MRI_US}/writing/terminal.py",
        "self._stream.write(text)\n            except (OSError, ValueError) as error:",
        "self._stream.write(text)\n            except ValueError as error:",
        "tests/examples/test_writing.py::test_output_that_cannot_be_shown_changes_no_exit_code",
    ),
]
