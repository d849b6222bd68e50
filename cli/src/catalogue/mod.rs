//! The models that are known by name: those of open_clip as `ARCHITECTURE/TAG`, and
//! clip-interrogator's caption models.

mod captioners;
mod clips;
mod names;

use captioners::CAPTIONERS;
use clips::ARCHITECTURES;
use imprompt_repository::family::{FAMILIES, Family, Role};
pub use names::ModelNames;

use crate::hub::HubId;
use crate::talk::{Failure, Result};

/// Names shown to one who misspelt one.
const SUGGESTIONS: usize = 3;

/// A model that has a name.
#[derive(Clone, Debug)]
pub struct Known {
    /// The name that `imprompt build` takes.
    pub name: String,
    /// Where its weights are; `None` where no hub has them.
    pub hub_id: Option<&'static str>,
    /// Its family.
    pub family: Family,
    /// Millions of parameters.
    pub parameters: f64,
    /// Bytes of its weights on the hub, where that is documented.
    pub disk: Option<u64>,
    /// The licence that its page names, where that is documented.
    pub licence: Option<&'static str>,
    /// What one would take it for.
    pub good_for: &'static str,
}

impl Known {
    /// Bytes of its weights in float32, all parts together.
    pub fn memory(&self) -> u64 {
        (self.parameters * 4e6) as u64
    }
}

/// Every known model: CLIPs in open_clip's order, then captioners.
pub fn all() -> Vec<Known> {
    let clips = ARCHITECTURES.iter().flat_map(|architecture| {
        architecture.tags.iter().map(|&(tag, hub_id)| Known {
            name: format!("{}/{tag}", architecture.name),
            hub_id,
            family: architecture.family,
            parameters: architecture.parameters,
            disk: None,
            licence: licence(tag, hub_id),
            good_for: architecture.good_for,
        })
    });
    let captioners = CAPTIONERS.iter().map(|captioner| Known {
        name: captioner.name.to_owned(),
        hub_id: Some(captioner.hub_id),
        family: captioner.family,
        parameters: captioner.parameters,
        disk: captioner.disk,
        licence: Some(captioner.licence),
        good_for: captioner.good_for,
    });
    clips.chain(captioners).collect()
}

/// OpenAI released code and weights of CLIP under MIT, and the pages of LAION's models say MIT.
fn licence(tag: &str, hub_id: Option<&str>) -> Option<&'static str> {
    let is_laions = hub_id.is_some_and(|id| id.starts_with("laion/"));
    (tag == "openai" || is_laions).then_some("MIT")
}

/// What `--clip` or `--captioner` means where it is no folder.
pub fn resolve(source: &str, role: Role) -> Result<HubId> {
    let known = all();
    let canonical = canonical(source);
    if let Some(found) = known.iter().find(|known| known.name == canonical) {
        return of_known(found, role);
    }
    // `ViT-L-14/misspelt` has the form of a hub id too; nobody on a hub is called ViT-L-14.
    let owner = source.split('/').next().unwrap_or_default();
    let is_architecture = ARCHITECTURES.iter().any(|architecture| architecture.name == owner);
    match HubId::parse(source) {
        Some(id) if !is_architecture => Ok(id),
        _ => Err(unknown(source, role, &known)),
    }
}

/// open_clip reads its tags in lower case and with underscores.
fn canonical(source: &str) -> String {
    match source.split_once('/') {
        Some((architecture, tag)) => {
            format!("{architecture}/{}", tag.to_ascii_lowercase().replace('-', "_"))
        }
        None => source.to_owned(),
    }
}

fn of_known(known: &Known, role: Role) -> Result<HubId> {
    let Known { name, family, .. } = known;
    if family.role != role {
        return Err(Failure::new(format!("{name}: is {}, not {}", a(family.role), a(role)))
            .hint(format!("name it with --{}", flag(family.role))));
    }
    if !family.supported {
        return Err(Failure::new(format!(
            "{name}: its architecture, {}, is known but not supported by this build",
            family.architecture
        ))
        .hint(supported(role)));
    }
    known.hub_id.and_then(HubId::parse).ok_or_else(|| {
        Failure::new(format!("{name}: open_clip has these weights outside of any hub")).hint(
            "take the same architecture with another tag (see `imprompt models`), or save the \
             model as a folder and name that",
        )
    })
}

fn unknown(source: &str, role: Role, known: &[Known]) -> Failure {
    let of_role = known.iter().filter(|known| known.family.role == role);
    let mut near: Vec<(usize, &str)> =
        of_role.map(|known| (distance(source, &known.name), &*known.name)).collect();
    near.sort_unstable();
    let limit = 2 + source.chars().count() / 3;
    let near: Vec<&str> = near
        .iter()
        .take(SUGGESTIONS)
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, name)| *name)
        .collect();
    let meant = match near[..] {
        [] => String::new(),
        _ => format!("did you mean {}? ", near.join(" or ")),
    };
    Failure::new(format!("{source}: no such folder, and no known name of {}", a(role)))
        .hint(format!("{meant}{}", supported(role)))
}

/// What would be right.
fn supported(role: Role) -> String {
    let families = FAMILIES.iter().filter(|family| family.role == role && family.supported);
    let names: Vec<&str> = families.map(|family| family.architecture).collect();
    format!(
        "supported: a folder, a hub id of the form OWNER/NAME, or a name that `imprompt models` \
         lists, of {}",
        names.join(", ")
    )
}

fn a(role: Role) -> &'static str {
    match role {
        Role::Clip => "a CLIP",
        Role::Captioner => "a captioner",
    }
}

fn flag(role: Role) -> &'static str {
    match role {
        Role::Clip => "clip",
        Role::Captioner => "captioner",
    }
}

/// Single characters to insert, remove or change, whatever their case (Levenshtein's distance).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let changed = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub_id(source: &str, role: Role) -> String {
        resolve(source, role).unwrap().to_string()
    }

    #[test]
    fn names_of_clip_interrogator_are_known() {
        for (name, id) in [
            ("ViT-L-14/openai", "openai/clip-vit-large-patch14"),
            ("ViT-L-14-336/openai", "openai/clip-vit-large-patch14-336"),
            ("ViT-B-32-quickgelu/openai", "openai/clip-vit-base-patch32"),
            ("ViT-H-14/laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
            ("ViT-H-14/laion2B-s32B-b79K", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
            ("ViT-bigG-14/laion2b_s39b_b160k", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
            ("someone/ViT-L-14@main2", "someone/ViT-L-14@main2"),
        ] {
            assert_eq!(hub_id(name, Role::Clip), id);
        }
        assert_eq!(hub_id("blip2-2.7b", Role::Captioner), "Salesforce/blip2-opt-2.7b");
        // clip-interrogator 0.6.0, CAPTION_MODELS.
        let expected = [
            ("blip-base", "Salesforce/blip-image-captioning-base"),
            ("blip-large", "Salesforce/blip-image-captioning-large"),
            ("blip2-2.7b", "Salesforce/blip2-opt-2.7b"),
            ("blip2-flan-t5-xl", "Salesforce/blip2-flan-t5-xl"),
            ("git-large-coco", "microsoft/git-large-coco"),
        ];
        let found: Vec<_> = CAPTIONERS.iter().take(5).map(|it| (it.name, it.hub_id)).collect();
        assert_eq!(found, expected);
    }

    /// open_clip 2.20.0 lists 87 pairs.
    #[test]
    fn every_name_is_there_once_and_every_id_is_one() {
        let all = all();
        assert_eq!(all.iter().filter(|known| known.family.role == Role::Clip).count(), 87);
        let mut names: Vec<&str> = all.iter().map(|known| &*known.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        for known in &all {
            assert!(known.parameters > 1.0 && known.memory() > 0);
            assert!(known.hub_id.is_none_or(|id| HubId::parse(id).is_some()), "{}", known.name);
            assert!(FAMILIES.contains(&known.family));
            let resolved = resolve(&known.name, known.family.role);
            let possible = known.family.supported && known.hub_id.is_some();
            assert_eq!(resolved.is_ok(), possible, "{}", known.name);
        }
    }

    #[test]
    fn others_are_told_what_is_near_and_what_is_supported() {
        let failure = |source: &str, role| format!("{:?}", resolve(source, role).unwrap_err());
        let said = failure("blip-lage", Role::Captioner);
        assert!(said.contains("no known name of a captioner"), "{said}");
        assert!(said.contains("did you mean blip-large"), "{said}");
        let said = failure("ViT-L-14/opanai", Role::Clip);
        assert!(said.contains("did you mean ViT-L-14/openai"), "{said}");
        let said = failure("nothing at all like it", Role::Clip);
        assert!(!said.contains("did you mean") && said.contains("CLIP (vision transformer)"));
        let said = failure("RN50/openai", Role::Clip);
        assert!(said.contains("CLIP (ResNet), is known but not supported"), "{said}");
        let said = failure("instructblip-vicuna-7b", Role::Captioner);
        assert!(said.contains("InstructBLIP (Vicuna), is known but not supported"), "{said}");
        assert!(said.contains("InstructBLIP (Flan-T5)"), "{said}");
        let said = failure("ViT-B-32/laion2b_e16", Role::Clip);
        assert!(said.contains("outside of any hub"), "{said}");
        let said = failure("ViT-L-14/openai", Role::Captioner);
        assert!(said.contains("is a CLIP, not a captioner"), "{said}");
    }

    #[test]
    fn a_distance_counts_changes() {
        assert_eq!(distance("blip", "BLIP"), 0);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
