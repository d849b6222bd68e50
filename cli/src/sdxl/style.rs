//! Styles, and the prompt they make. The known ones are in `styles.json`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::talk::{Failure, Result};

#[derive(Deserialize)]
struct Known {
    template: String,
    styles: BTreeMap<String, Style>,
}

/// A painting to paint like.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Style {
    /// `{artist}` of a template.
    pub artist: String,
    /// `{style}` of a template.
    pub style: String,
}

/// The prompt: `template` (that of the styles unless said) with its `{artist}`, `{style}` and `{prompt}`.
pub fn prompt(style: Option<&str>, template: Option<&str>, prompt: &str) -> Result<String> {
    let known: Known = serde_json::from_str(include_str!("styles.json")).map_err(Failure::new)?;
    let style = style.map(|name| {
        known.styles.get(name).ok_or_else(|| {
            let names: Vec<_> = known.styles.keys().map(String::as_str).collect();
            Failure::usage("--style: no such style").hint(format!(
                "known are {}; or --template 'a watercolour, {{prompt}}'",
                names.join(", ")
            ))
        })
    });
    let style = style.transpose()?;
    let template = template.unwrap_or(&known.template);
    let needs_style = ["{artist}", "{style}"].iter().any(|name| template.contains(name));
    if !template.contains("{prompt}") {
        return Err(Failure::usage("--template: has no {prompt}, where the picture's prompt goes"));
    }
    if needs_style && style.is_none() {
        return Err(Failure::usage("--template: has {artist} or {style}, which --style says"));
    }
    // In one pass: what is put in is not looked through again.
    let mut out = String::new();
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let values = style.map_or(("", ""), |style| (&*style.artist, &*style.style));
        let known = [("{artist}", values.0), ("{style}", values.1), ("{prompt}", prompt)];
        match known.iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, value)) => {
                out.push_str(value);
                rest = &rest[name.len()..];
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_of_the_sample() {
        assert_eq!(
            prompt(Some("van-gogh/the-starry-night"), None, "a {style} dog").unwrap(),
            "This scene is a Van Gogh painting with The Starry Night style, a {style} dog"
        );
        assert_eq!(prompt(None, Some("{x} {prompt}!"), "a dog").unwrap(), "{x} a dog!");
        for (style, template) in [(Some("nobody"), None), (None, None), (None, Some("plain"))] {
            assert_eq!(prompt(style, template, "a dog").unwrap_err().code(), 2);
        }
    }
}
