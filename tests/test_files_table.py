"""Each row of the tables in docs/files.md is exercised by a test."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
READING, PIXELS = "video/test_reading.py", "video/test_pixels.py"
DATA = "cli/test_lora_data.py"
PARTS, SAVED = "checkpoints/test_component_files.py", "reference/test_saved_today.py"
FOREIGN = "reference/test_foreign_adapters.py"

ROWS = {
    "`.mp4`, `.m4v`": (READING, "test_training_takes_clips_of_every_known_suffix"),
    "`.gif`, `.apng`": (READING, "test_an_animation_is_a_clip_and_its_first_frame_a_picture"),
    "animated `.webp`": (READING, "test_an_animated_webp_is_refused_as_what_it_is"),
    "a folder of pictures of one": (PIXELS, "test_frames_of_two_sizes_are_refused_by_name"),
    "any frame rate": (READING, "test_a_clip_has_as_many_frames_in_every_container"),
    "rotated or mirrored": (PIXELS, "test_a_clip_is_turned_and_mirrored_by_its_display_matrix"),
    "HDR (HLG, PQ)": (PIXELS, "test_colours_come_back_as_those_of_sdr"),
    "interlaced": (PIXELS, "test_an_interlaced_clip_is_deinterlaced_at_its_own_times"),
    "with transparency": (PIXELS, "test_a_transparent_webm_is_on_white"),
    "damaged": (PIXELS, "test_a_clip_is_refused_if_a_frame_that_is_needed_is_damaged"),
    "`.png`, `.jpg`": (READING, "test_pictures_of_every_known_suffix_are_read"),
    "`.heic`, `.heif`": (READING, "test_a_heic_is_converted_where_the_system_can"),
    "EXIF orientations": (
        PIXELS,
        "test_a_picture_is_turned_and_mirrored_by_its_exif_orientation",
    ),
    "the ICC profile": (PIXELS, "test_pictures_are_in_the_primaries_of_their_profile"),
    "a picture of several parts": (READING, "test_a_picture_of_several_parts_is_refused"),
    "TIFF with JPEG": (PIXELS, "test_a_tiff_with_jpeg_compression_is_refused"),
    "cut off": (PIXELS, "test_a_picture_that_is_cut_off_is_refused_and_a_whole_one_is_not"),
    "`clip.mp4` with": (DATA, "test_captions_are_found_under_the_names_that_people_give_them"),
    "`videos/…/clip.mp4`": (DATA, "test_layouts_are_read_as_tools_write_them"),
    "`videos.txt`": (DATA, "test_layouts_are_read_as_tools_write_them"),
    "`metadata.csv`": ("training/test_tables.py", "test_tables_are_read_as_tools_write_them"),
    "`dataset.json`": (DATA, "test_layouts_are_read_as_tools_write_them"),
    "a folder of frames": (DATA, "test_layouts_are_read_as_tools_write_them"),
    "`STEM.safetensors`": (PARTS, "test_files_of_other_names_are_read"),
    "shards with an": (PARTS, "test_an_odd_index_is_refused_alone_and_ignored_beside_a_whole_file"),
    "shards without": (PARTS, "test_files_of_other_names_are_read"),
    '`variant="fp16"`': (SAVED, "test_its_numbers_are_those_of_diffusers"),
    "float64": (PARTS, "test_float64_is_read_as_float32_beside_every_other_type"),
    "T5 with": (PARTS, "test_the_token_embedding_is_read_under_either_name"),
    "`tokenizer/spiece.model`": (SAVED, "test_its_numbers_are_those_of_diffusers"),
    "a finetune": ("checkpoints/test_base.py", "test_a_base_gives_what_the_folder_lacks"),
    "`.pt` files": ("reference/test_sat.py", "test_tensors_are_read_as_torch_reads_them"),
    "`.bin`, `.gguf`": (PARTS, "test_weights_of_another_kind_are_named_with_what_to_do"),
    "models of another kind": (
        "checkpoints/test_compatibility.py",
        "test_a_model_of_another_kind_is_named",
    ),
    "this program": (
        "reference/test_lora.py",
        "test_our_adapter_has_the_same_effect_in_diffusers_and_in_peft",
    ),
    "diffusers without": (
        "reference/test_lora.py",
        "test_without_metadata_alpha_is_the_rank_as_in_diffusers",
    ),
    "finetrainers": (FOREIGN, "test_finetrainers"),
    "kohya": (FOREIGN, "test_kohya_and_videox_fun"),
    "SAT": (FOREIGN, "test_sat"),
    "DoRA of kohya": (FOREIGN, "test_dora"),
    "LoKr of PEFT": ("reference/test_lora.py", "test_lokr_that_peft_saved_has_the_same_effect"),
    "LoKr of LyCORIS": (FOREIGN, "test_lokr_of_lycoris"),
    "LoHa": (
        "checkpoints/test_adapters.py",
        "test_an_adapter_that_doesnt_fit_is_an_error_before_any_weight_is_read",
    ),
    "`--prompt-file`": (
        "runs/test_batch.py",
        "test_each_line_is_a_prompt_unless_it_is_blank_or_a_comment",
    ),
    "`--config`": (
        "cli/test_options.py",
        "test_yaml_is_read_by_the_types_of_the_options",
    ),
}
"""How a row begins, and the test of it."""

PAGE = (TESTS.parent / "docs" / "files.md").read_text()
TABLE = re.findall(r"^\| (?!file \||layout \||written by \|)(\S.*?) \|", PAGE, re.MULTILINE)


@pytest.mark.parametrize("row", TABLE)
def test_a_row_has_a_test(row):
    (found,) = {test for begin, test in ROWS.items() if row.startswith(begin)}
    file, name = found
    assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), found


def test_the_tables_have_all_rows():
    assert len(TABLE) == len(ROWS)
