"""Where modules and notebooks went when the package got its folders; answered with one sentence, for one release."""

import sys

# Modules of facelab 0.1 -> where they are, below facelab.
MODULES = {
    "architecture": "networks.drawing",
    "batches": "training.batches",
    "charts": "publication.charts",
    "checkpoints": "training.checkpoints",
    "claims": "publication.claims",
    "degradations.core": "degradations.degradation",
    "deviations": "publication.deviations",
    "devices": "base.devices",
    "dice": "base.dice",
    "drawn": "faces.drawn",
    "drawn_features": "faces.drawn_features",
    "drawn_hair": "faces.drawn_hair",
    "drawn_parameters": "faces.drawn_people",
    "drawn_parts": "faces.drawn_head",
    "engine": "base.files, base.params, base.schema, apps.commands and pipeline.sources",
    "explorer": "apps.explorer",
    "features": "losses.features (Unavailable and find_weights: base.weights)",
    "figures": "publication.figures",
    "folders": "faces.layouts",
    "heatmaps": "faces.heatmaps",
    "identification": "evaluation.identification",
    "images": "base.images",
    "inputs": "evaluation.inputs",
    "judges": "evaluation.judges",
    "labelling": "evaluation.labelling",
    "losses.views": "losses.regions",
    "metrics": "evaluation.metrics",
    "models": "training.models",
    "networks.core": "networks.expect",
    "networks.dense": "networks.hrrm",
    "networks.identity": "networks.jdsr_identity",
    "networks.start": "networks.identity_start",
    "networks.unet_parsing": "networks.fpm",
    "objective": "training.objective",
    "pages": "publication.paper_page",
    "parts": "faces.parts",
    "photographs": "evaluation.photographs, training.zoo and apps.files",
    "recipes": "training.recipes (build and locate: base.names)",
    "registry": "networks.registry",
    "run": "training.run",
    "scoring": "evaluation.scores",
    "set_metrics": "evaluation.set_metrics",
    "shards": "faces.shards",
    "shipping": "publication.shipping",
    "tables": "publication.tables, evaluation.measures and evaluation.summary",
    "widgets": "apps.widgets",
}

# What the packages `faces`, `training` and `evaluation` held when they were modules, and do not lend today.
NAMES = {
    "faces": {
        "CLASSES_19": "faces.parts.CLASSES_19",
        "Files": "faces.layouts.Files",
        "HAVE": "faces.sets.LABEL_SOURCES",
        "LABELS": "faces.sets.LABELS",
        "LANDMARK_SCHEMES": "faces.parts.LANDMARK_SCHEMES",
        "MIRROR_11": "faces.parts.MIRROR_11",
        "MIRROR_19": "faces.parts.MIRROR_19",
        "PARTS_11": "faces.parts.PARTS_11",
        "Report": "faces.sets.Report",
        "SPLITS": "faces.layouts.SPLITS",
        "TEMPLATES": "faces.parts.TEMPLATES",
        "TO_11": "faces.parts.TO_11",
        "five_points": "faces.parts.five_points",
        "free_bytes": "faces.sets.free_bytes",
        "hash_split": "faces.layouts.hash_split",
        "main": "faces.sets.main",
        "mirror": "faces.parts.mirror",
        "moved": "faces.parts.transform_landmarks",
        "order_194": "faces.parts.order_194",
        "parsing_11": "faces.parts.parsing_11",
        "parsing_from_landmarks": "faces.parts.parsing_from_landmarks",
        "right_sides": "faces.parts.correct_sides",
        "similarity": "faces.parts.similarity",
        "survey": "faces.layouts.survey",
    },
    "training": {
        "History": "training.loop.History",
        "Run": "training.run.Run",
        "batch_norms": "training.loop.batch_norms",
        "look": "training.loop.predict_with",
        "looking_steps": "training.loop.validation_steps",
        "part_hashes": "training.loop.helper_hashes",
        "psnr": "training.loop.unrounded_psnr",
        "resume": "training.loop.Checkpoint",
        "run_report": "training.loop.run_report",
        "run_stages": "training.loop.run_stages",
        "settled": "training.loop.averaged_weights",
        "sheet": "training.loop.sample_grid",
        "take_step": "training.run.take_step",
        "training_inputs": "training.loop.training_inputs",
        "validate": "training.loop.validate",
        "validation_inputs": "training.loop.validation_inputs",
        "with_statistics": "training.loop.recompute_statistics",
        "write_history": "training.loop.write_history",
    },
    "evaluation": {
        "FIELDS": "evaluation.restore.FIELDS",
        "Restoration": "evaluation.restore.Restoration",
        "SETS": "evaluation.restore.SETS",
        "leave_only": "evaluation.restore.leave_only",
        "read_restored": "evaluation.restore.read_restored",
        "restorations": "evaluation.restore.restorations",
        "restore_set": "evaluation.restore.restore_set",
        "restored_anew": "evaluation.restore.update_restored",
    },
}

# Names in recipes and in recipe.json of trained models; they go on working.
USES = {
    "features": "losses.features",
    "labelling.balanced_cross_entropy": "losses.prior.balanced_cross_entropy",
    "losses.views": "losses.regions",
    "networks.dense": "networks.hrrm",
    "networks.identity": "networks.jdsr_identity",
    "networks.unet_parsing": "networks.fpm",
}

# Notebooks -> where they are, below nbs, without .ipynb.
NOTEBOOKS = {
    "00_images": "0_base/01_images",
    "00a_dice": "0_base/02_dice",
    "00b_devices": "0_base/03_devices",
    "01_faces": "1_faces/01_sets",
    "01a_parts": "1_faces/02_parts",
    "01b_folders": "1_faces/04_layouts",
    "01c_heatmaps": "1_faces/03_heatmaps",
    "01d_shards": "1_faces/05_shards",
    "01e_labelling": "7_evaluation/04_labelling",
    "02_drawn": "1_faces/06_drawn",
    "02a_drawn_parameters": "1_faces/07_drawn_people",
    "02b_drawn_parts": "1_faces/08_drawn_head",
    "02c_drawn_features": "1_faces/09_drawn_features",
    "02d_drawn_hair": "1_faces/10_drawn_hair",
    "03_architecture": "3_networks/02_drawing",
    "03a_registry": "3_networks/01_registry",
    "05_features": "4_losses/02_features",
    "06_metrics": "7_evaluation/03_metrics",
    "06a_judges": "7_evaluation/05_judges",
    "06b_set_metrics": "7_evaluation/06_set_metrics",
    "07_recipes": "6_training/01_recipes",
    "07a_objective": "6_training/02_objective",
    "08_batches": "6_training/03_batches",
    "08a_models": "6_training/07_models",
    "08b_run": "6_training/04_run",
    "08c_checkpoints": "6_training/05_checkpoints",
    "08d_training": "6_training/06_loop",
    "08e_evaluation": "7_evaluation/02_restore",
    "08f_scoring": "7_evaluation/07_scores",
    "08g_identification": "7_evaluation/08_identification",
    "08h_photographs": "7_evaluation/09_photographs",
    "08i_shipping": "8_publication/07_shipping",
    "09_tables": "8_publication/01_tables",
    "09a_claims": "8_publication/04_claims",
    "09b_deviations": "8_publication/05_deviations",
    "10_figures": "8_publication/03_figures",
    "10a_charts": "8_publication/02_charts",
    "11_inputs": "7_evaluation/01_inputs",
    "12_explorer": "9_apps/01_explorer",
    "12a_widgets": "9_apps/02_widgets",
    "13_pages": "8_publication/06_paper_page",
    "degradations/00_core": "2_degradations/01_degradation",
    "degradations/01_resample": "2_degradations/02_resample",
    "degradations/02_occlusion": "2_degradations/04_occlusion",
    "degradations/03_masks": "2_degradations/06_masks",
    "degradations/03a_mask_template": "2_degradations/05_mask_template",
    "degradations/04_motion": "2_degradations/07_motion",
    "degradations/05_rain": "2_degradations/08_rain",
    "degradations/06_camera": "2_degradations/03_camera",
    "degradations/07_chain": "2_degradations/09_chain",
    "degradations/08_chains_of_the_papers": "2_degradations/10_chains_of_the_papers",
    "losses/00_pixel": "4_losses/01_pixel",
    "losses/01_perceptual": "4_losses/03_perceptual",
    "losses/02_adversarial": "4_losses/04_adversarial",
    "losses/03_noise": "4_losses/05_noise",
    "losses/04_prior": "4_losses/06_prior",
    "losses/05_views": "4_losses/07_regions",
    "networks/00_bicubic": "3_networks/10_bicubic",
    "networks/00a_core": "3_networks/03_expect",
    "networks/01_srresnet": "3_networks/11_srresnet",
    "networks/02_srgan": "3_networks/12_srgan",
    "networks/03_prior_guided": "3_networks/50_prior_guided",
    "networks/04_start": "3_networks/04_identity_start",
    "networks/05_rcan": "3_networks/13_rcan",
    "networks/06_rrdb": "3_networks/14_rrdb",
    "networks/07_srfbn": "3_networks/15_srfbn",
    "networks/08_drn": "3_networks/16_drn",
    "networks/09_hourglass": "3_networks/20_hourglass",
    "networks/10_fsrnet": "3_networks/21_fsrnet",
    "networks/11_dic": "3_networks/22_dic",
    "networks/12_sicnn": "3_networks/23_sicnn",
    "networks/13_cbdnet": "3_networks/30_cbdnet",
    "networks/14_pconv": "3_networks/31_pconv",
    "networks/15_gfc": "3_networks/32_gfc",
    "networks/16_pix2pix": "3_networks/33_pix2pix",
    "networks/17_lightcnn": "3_networks/40_lightcnn",
    "networks/18_inception_resnet": "3_networks/41_inception_resnet",
    "networks/19_mobilefacenet": "3_networks/42_mobilefacenet",
    "networks/20_identity": "3_networks/43_jdsr_identity",
    "networks/21_wgan_critic": "3_networks/51_wgan_critic",
    "networks/22_rain_removal": "3_networks/34_rain_removal",
    "networks/23_dense": "3_networks/52_hrrm",
    "networks/24_unet_parsing": "3_networks/53_fpm",
    "networks/25_fcg": "3_networks/54_fcg",
    "networks/26_two_branch": "3_networks/55_two_branch",
    "systems/01_prior_guided_sr": "5_systems/01_prior_guided_sr",
    "systems/02_jdsr_gan": "5_systems/02_jdsr_gan",
    "systems/03_fcsr_gan": "5_systems/03_fcsr_gan",
    "systems/04_sr_deblur_gan": "5_systems/04_sr_deblur_gan",
    "systems/05_heavy_rain": "5_systems/05_heavy_rain",
    "systems/06_sequence": "5_systems/06_sequence",
}


def sentence(old, new):
    "What somebody who imports an old module reads."
    return f"facelab.{old} has moved: look in facelab for {new}"


class Moved:
    "A finder of `sys.meta_path` that answers imports of modules that were renamed."

    @staticmethod
    def find_spec(name, path=None, target=None):
        "ModuleNotFoundError with the new place for an old module; None, as it finds nothing, for all others."
        package, _, old = name.partition(".")
        if package == "facelab" and old in MODULES:
            raise ModuleNotFoundError(sentence(old, MODULES[old]), name=name)


def current(use):
    "The present name of what a recipe names, such as networks.srresnet.SRResNet."
    module, _, name = str(use).rpartition(".")
    return USES.get(use) or f"{USES.get(module, module)}.{name}"


def current_recipe(recipe):
    "A trained model's recipe.json in the present words: helpers were called parts."
    if not isinstance(recipe, dict):
        return recipe
    change = {}
    if recipe.get("kind") == "parts":
        change["kind"] = "helpers"
    if str(recipe.get("needs")).startswith("parts/"):
        change["needs"] = "helpers/" + recipe["needs"].removeprefix("parts/")
    return {**recipe, **change}


sys.meta_path.insert(0, Moved)
