//! The CLIPs that open_clip 2.20.0 knows by architecture and tag: the table `_PRETRAINED` of its
//! `pretrained.py`, whose names are clip-interrogator's. Parameters, in millions, are those of
//! open_clip's `docs/model_profile.csv`.

use imprompt_repository::family::{
    CLIP, CLIP_CONVNEXT, CLIP_RESNET, CLIP_ROBERTA, COCA, EVA, Family,
};

/// An architecture and the weights there are of it.
pub(super) struct Architecture {
    pub(super) name: &'static str,
    pub(super) family: Family,
    /// Millions.
    pub(super) parameters: f64,
    pub(super) good_for: &'static str,
    /// Tag, and the hub id. Without one the weights are at an address outside of any hub.
    pub(super) tags: &'static [(&'static str, Option<&'static str>)],
}

/// In open_clip's order.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "RN50",
        family: CLIP_RESNET,
        parameters: 102.01,
        good_for: "",
        tags: &[("openai", None), ("yfcc15m", None), ("cc12m", None)],
    },
    Architecture {
        name: "RN50-quickgelu",
        family: CLIP_RESNET,
        parameters: 102.01,
        good_for: "",
        tags: &[("openai", None), ("yfcc15m", None), ("cc12m", None)],
    },
    Architecture {
        name: "RN101",
        family: CLIP_RESNET,
        parameters: 119.69,
        good_for: "",
        tags: &[("openai", None), ("yfcc15m", None)],
    },
    Architecture {
        name: "RN101-quickgelu",
        family: CLIP_RESNET,
        parameters: 119.69,
        good_for: "",
        tags: &[("openai", None), ("yfcc15m", None)],
    },
    Architecture {
        name: "RN50x4",
        family: CLIP_RESNET,
        parameters: 178.3,
        good_for: "",
        tags: &[("openai", None)],
    },
    Architecture {
        name: "RN50x16",
        family: CLIP_RESNET,
        parameters: 290.98,
        good_for: "",
        tags: &[("openai", None)],
    },
    Architecture {
        name: "RN50x64",
        family: CLIP_RESNET,
        parameters: 623.26,
        good_for: "",
        tags: &[("openai", None)],
    },
    Architecture {
        name: "ViT-B-32",
        family: CLIP,
        parameters: 151.28,
        good_for: "small and fast",
        tags: &[
            ("openai", Some("openai/clip-vit-base-patch32")),
            ("laion400m_e31", None),
            ("laion400m_e32", None),
            ("laion2b_e16", None),
            ("laion2b_s34b_b79k", Some("laion/CLIP-ViT-B-32-laion2B-s34B-b79K")),
            ("datacomp_m_s128m_b4k", Some("laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K")),
            (
                "commonpool_m_clip_s128m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.M.clip-s128M-b4K"),
            ),
            (
                "commonpool_m_laion_s128m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.M.laion-s128M-b4K"),
            ),
            (
                "commonpool_m_image_s128m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.M.image-s128M-b4K"),
            ),
            (
                "commonpool_m_text_s128m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.M.text-s128M-b4K"),
            ),
            (
                "commonpool_m_basic_s128m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.M.basic-s128M-b4K"),
            ),
            ("commonpool_m_s128m_b4k", Some("laion/CLIP-ViT-B-32-CommonPool.M-s128M-b4K")),
            ("datacomp_s_s13m_b4k", Some("laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K")),
            ("commonpool_s_clip_s13m_b4k", Some("laion/CLIP-ViT-B-32-CommonPool.S.clip-s13M-b4K")),
            (
                "commonpool_s_laion_s13m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.S.laion-s13M-b4K"),
            ),
            (
                "commonpool_s_image_s13m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.S.image-s13M-b4K"),
            ),
            ("commonpool_s_text_s13m_b4k", Some("laion/CLIP-ViT-B-32-CommonPool.S.text-s13M-b4K")),
            (
                "commonpool_s_basic_s13m_b4k",
                Some("laion/CLIP-ViT-B-32-CommonPool.S.basic-s13M-b4K"),
            ),
            ("commonpool_s_s13m_b4k", Some("laion/CLIP-ViT-B-32-CommonPool.S-s13M-b4K")),
        ],
    },
    Architecture {
        name: "ViT-B-32-quickgelu",
        family: CLIP,
        parameters: 151.28,
        good_for: "",
        tags: &[
            ("openai", Some("openai/clip-vit-base-patch32")),
            ("laion400m_e31", None),
            ("laion400m_e32", None),
        ],
    },
    Architecture {
        name: "ViT-B-16",
        family: CLIP,
        parameters: 149.62,
        good_for: "finer patches than B-32, still small",
        tags: &[
            ("openai", Some("openai/clip-vit-base-patch16")),
            ("laion400m_e31", None),
            ("laion400m_e32", None),
            ("laion2b_s34b_b88k", Some("laion/CLIP-ViT-B-16-laion2B-s34B-b88K")),
            ("datacomp_l_s1b_b8k", Some("laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K")),
            ("commonpool_l_clip_s1b_b8k", Some("laion/CLIP-ViT-B-16-CommonPool.L.clip-s1B-b8K")),
            ("commonpool_l_laion_s1b_b8k", Some("laion/CLIP-ViT-B-16-CommonPool.L.laion-s1B-b8K")),
            ("commonpool_l_image_s1b_b8k", Some("laion/CLIP-ViT-B-16-CommonPool.L.image-s1B-b8K")),
            ("commonpool_l_text_s1b_b8k", Some("laion/CLIP-ViT-B-16-CommonPool.L.text-s1B-b8K")),
            ("commonpool_l_basic_s1b_b8k", Some("laion/CLIP-ViT-B-16-CommonPool.L.basic-s1B-b8K")),
            ("commonpool_l_s1b_b8k", Some("laion/CLIP-ViT-B-16-CommonPool.L-s1B-b8K")),
        ],
    },
    Architecture {
        name: "ViT-B-16-plus-240",
        family: CLIP,
        parameters: 208.38,
        good_for: "",
        tags: &[("laion400m_e31", None), ("laion400m_e32", None)],
    },
    Architecture {
        name: "ViT-L-14",
        family: CLIP,
        parameters: 427.62,
        good_for: "prompts for Stable Diffusion 1; with openai, clip-interrogator's default",
        tags: &[
            ("openai", Some("openai/clip-vit-large-patch14")),
            ("laion400m_e31", None),
            ("laion400m_e32", None),
            ("laion2b_s32b_b82k", Some("laion/CLIP-ViT-L-14-laion2B-s32B-b82K")),
            ("datacomp_xl_s13b_b90k", Some("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K")),
            (
                "commonpool_xl_clip_s13b_b90k",
                Some("laion/CLIP-ViT-L-14-CommonPool.XL.clip-s13B-b90K"),
            ),
            (
                "commonpool_xl_laion_s13b_b90k",
                Some("laion/CLIP-ViT-L-14-CommonPool.XL.laion-s13B-b90K"),
            ),
            ("commonpool_xl_s13b_b90k", Some("laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K")),
        ],
    },
    Architecture {
        name: "ViT-L-14-336",
        family: CLIP,
        parameters: 427.94,
        good_for: "ViT-L-14 on larger pictures",
        tags: &[("openai", Some("openai/clip-vit-large-patch14-336"))],
    },
    Architecture {
        name: "ViT-H-14",
        family: CLIP,
        parameters: 986.11,
        good_for: "prompts for Stable Diffusion 2",
        tags: &[("laion2b_s32b_b79k", Some("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"))],
    },
    Architecture {
        name: "ViT-g-14",
        family: CLIP,
        parameters: 1366.68,
        good_for: "between H and bigG",
        tags: &[
            ("laion2b_s12b_b42k", Some("laion/CLIP-ViT-g-14-laion2B-s12B-b42K")),
            ("laion2b_s34b_b88k", Some("laion/CLIP-ViT-g-14-laion2B-s34B-b88K")),
        ],
    },
    Architecture {
        name: "ViT-bigG-14",
        family: CLIP,
        parameters: 2539.57,
        good_for: "prompts for SDXL",
        tags: &[("laion2b_s39b_b160k", Some("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"))],
    },
    Architecture {
        name: "roberta-ViT-B-32",
        family: CLIP_ROBERTA,
        parameters: 212.72,
        good_for: "texts by RoBERTa",
        tags: &[("laion2b_s12b_b32k", Some("laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k"))],
    },
    Architecture {
        name: "xlm-roberta-base-ViT-B-32",
        family: CLIP_ROBERTA,
        parameters: 366.12,
        good_for: "texts in many languages",
        tags: &[(
            "laion5b_s13b_b90k",
            Some("laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k"),
        )],
    },
    Architecture {
        name: "xlm-roberta-large-ViT-H-14",
        family: CLIP_ROBERTA,
        parameters: 1193.01,
        good_for: "texts in many languages",
        tags: &[(
            "frozen_laion5b_s13b_b90k",
            Some("laion/CLIP-ViT-H-14-frozen-xlm-roberta-large-laion5B-s13B-b90k"),
        )],
    },
    Architecture {
        name: "convnext_base",
        family: CLIP_CONVNEXT,
        parameters: 151.52,
        good_for: "",
        tags: &[("laion400m_s13b_b51k", Some("laion/CLIP-convnext_base-laion400M-s13B-b51K"))],
    },
    Architecture {
        name: "convnext_base_w",
        family: CLIP_CONVNEXT,
        parameters: 179.39,
        good_for: "",
        tags: &[
            ("laion2b_s13b_b82k", Some("laion/CLIP-convnext_base_w-laion2B-s13B-b82K")),
            (
                "laion2b_s13b_b82k_augreg",
                Some("laion/CLIP-convnext_base_w-laion2B-s13B-b82K-augreg"),
            ),
            (
                "laion_aesthetic_s13b_b82k",
                Some("laion/CLIP-convnext_base_w-laion_aesthetic-s13B-b82K"),
            ),
        ],
    },
    Architecture {
        name: "convnext_base_w_320",
        family: CLIP_CONVNEXT,
        parameters: 179.39,
        good_for: "",
        tags: &[
            (
                "laion_aesthetic_s13b_b82k",
                Some("laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K"),
            ),
            (
                "laion_aesthetic_s13b_b82k_augreg",
                Some("laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg"),
            ),
        ],
    },
    Architecture {
        name: "convnext_large_d",
        family: CLIP_CONVNEXT,
        parameters: 351.77,
        good_for: "",
        tags: &[(
            "laion2b_s26b_b102k_augreg",
            Some("laion/CLIP-convnext_large_d.laion2B-s26B-b102K-augreg"),
        )],
    },
    Architecture {
        name: "convnext_large_d_320",
        family: CLIP_CONVNEXT,
        parameters: 351.77,
        good_for: "",
        tags: &[
            (
                "laion2b_s29b_b131k_ft",
                Some("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft"),
            ),
            (
                "laion2b_s29b_b131k_ft_soup",
                Some("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"),
            ),
        ],
    },
    Architecture {
        name: "convnext_xxlarge",
        family: CLIP_CONVNEXT,
        parameters: 1200.58,
        good_for: "",
        tags: &[
            (
                "laion2b_s34b_b82k_augreg",
                Some("laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg"),
            ),
            (
                "laion2b_s34b_b82k_augreg_rewind",
                Some("laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-rewind"),
            ),
            (
                "laion2b_s34b_b82k_augreg_soup",
                Some("laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"),
            ),
        ],
    },
    Architecture {
        name: "coca_ViT-B-32",
        family: COCA,
        parameters: 253.56,
        good_for: "",
        tags: &[
            ("laion2b_s13b_b90k", Some("laion/CoCa-ViT-B-32-laion2B-s13B-b90k")),
            (
                "mscoco_finetuned_laion2b_s13b_b90k",
                Some("laion/mscoco_finetuned_CoCa-ViT-B-32-laion2B-s13B-b90k"),
            ),
        ],
    },
    Architecture {
        name: "coca_ViT-L-14",
        family: COCA,
        parameters: 638.45,
        good_for: "",
        tags: &[
            ("laion2b_s13b_b90k", Some("laion/CoCa-ViT-L-14-laion2B-s13B-b90k")),
            (
                "mscoco_finetuned_laion2b_s13b_b90k",
                Some("laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k"),
            ),
        ],
    },
    Architecture {
        name: "EVA01-g-14",
        family: EVA,
        parameters: 1136.44,
        good_for: "",
        tags: &[(
            "laion400m_s11b_b41k",
            Some("timm/eva_giant_patch14_clip_224.laion400m_s11b_b41k"),
        )],
    },
    Architecture {
        name: "EVA01-g-14-plus",
        family: EVA,
        parameters: 1366.62,
        good_for: "",
        tags: &[(
            "merged2b_s11b_b114k",
            Some("timm/eva_giant_patch14_plus_clip_224.merged2b_s11b_b114k"),
        )],
    },
    Architecture {
        name: "EVA02-B-16",
        family: EVA,
        parameters: 149.69,
        good_for: "",
        tags: &[(
            "merged2b_s8b_b131k",
            Some("timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k"),
        )],
    },
    Architecture {
        name: "EVA02-L-14",
        family: EVA,
        parameters: 427.76,
        good_for: "",
        tags: &[(
            "merged2b_s4b_b131k",
            Some("timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k"),
        )],
    },
    Architecture {
        name: "EVA02-L-14-336",
        family: EVA,
        parameters: 428.08,
        good_for: "",
        tags: &[("merged2b_s6b_b61k", Some("timm/eva02_large_patch14_clip_336.merged2b_s6b_b61k"))],
    },
    Architecture {
        name: "EVA02-E-14",
        family: EVA,
        parameters: 4704.59,
        good_for: "",
        tags: &[(
            "laion2b_s4b_b115k",
            Some("timm/eva02_enormous_patch14_clip_224.laion2b_s4b_b115k"),
        )],
    },
    Architecture {
        name: "EVA02-E-14-plus",
        family: EVA,
        parameters: 5044.89,
        good_for: "",
        tags: &[(
            "laion2b_s9b_b144k",
            Some("timm/eva02_enormous_patch14_plus_clip_224.laion2b_s9b_b144k"),
        )],
    },
];
