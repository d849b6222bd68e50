//! Reading a body.

use std::borrow::Cow;
use std::fmt;

use imprompt_error::{Error, Result};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::Limits;
use crate::asked::{Answer, Asked, Value};
use crate::fields::{self, FIELDS, Field, Kind, MAX_LENGTH, Of, PARAMETERS};

/// What a body says.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation<'a> {
    /// The picture: encoded bytes, base64 text or a `data:` URL.
    pub picture: Cow<'a, [u8]>,
    /// What is asked of it.
    pub asked: Asked,
}

/// Reads `body`. One that begins with `{`, blanks aside, is a JSON object; any other is a picture,
/// of which the prompt is asked.
///
/// # Errors
/// `InvalidInput` that names the field, what is wrong with it, and what is allowed.
pub fn read<'a>(body: &'a [u8], limits: &Limits) -> Result<Invocation<'a>> {
    if body.len() > limits.body_bytes {
        return Err(Error::invalid(format!(
            "body: {} bytes, at most {} are allowed",
            body.len(),
            limits.body_bytes
        )));
    }
    let json = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    match json.first() {
        None => Err(Error::invalid("body: empty, allowed: a JSON object or an encoded picture")),
        Some(b'{') => object(json, limits),
        Some(b'[' | b'"') => Err(Error::invalid(
            "body: JSON that is no object, allowed: a JSON object or an encoded picture",
        )),
        Some(_) => Ok(Invocation {
            picture: Cow::Borrowed(body),
            asked: Asked { answer: Answer::Prompt, inputs: Vec::new() },
        }),
    }
}

fn object<'a>(json: &'a [u8], limits: &Limits) -> Result<Invocation<'a>> {
    let mut said = Said { picture: None, values: Vec::new() };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let object = Object { said: &mut said, limits, is_inner: false };
    let read = object.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    // Messages of the reader itself are fixed texts, those of `Data` are written below.
    read.map_err(|error| {
        Error::invalid(match error.classify() {
            serde_json::error::Category::Data => error.to_string(),
            _ => format!("body: not JSON: {error}"),
        })
    })?;
    said.invocation(limits)
}

/// What an object has said so far, each field once.
struct Said<'a> {
    picture: Option<(&'static Field, Cow<'a, str>)>,
    values: Vec<(&'static Field, Value)>,
}

impl<'a> Said<'a> {
    fn invocation(self, limits: &Limits) -> Result<Invocation<'a>> {
        let Some((_, picture)) = self.picture else {
            return Err(Error::invalid("fields `image` and `inputs`: one of them is needed"));
        };
        let mut labels = self.values.iter().filter(|(field, _)| field.of == Of::LabelsAsked);
        let answer = match (labels.next(), labels.next()) {
            (None, _) => Answer::Prompt,
            (Some((field, _)), None) if field.name == "prompt" => Answer::Probabilities,
            (Some(_), None) => Answer::Labels,
            (Some((one, _)), Some((other, _))) => {
                return Err(Error::invalid(format!(
                    "fields `{}` and `{}`: only one of them is allowed",
                    one.name, other.name
                )));
            }
        };
        for (field, value) in &self.values {
            let why = match (field.of, answer) {
                (Of::Prompt, Answer::Probabilities | Answer::Labels) => {
                    "not allowed with `prompt`, `labels` or `vocabulary`"
                }
                (Of::Labels, Answer::Prompt) => "not allowed without `prompt` or `labels`",
                // The answer has to have a probability for every prompt, in their order.
                (Of::All, Answer::Probabilities) => "not allowed with `prompt`, but with `labels`",
                _ => "",
            };
            if !why.is_empty() {
                return Err(Error::invalid(format!("field `{}`: {why}", field.name)));
            }
            if let (MAX_LENGTH, Value::Whole(tokens)) = (field.name, value)
                && !usize::try_from(*tokens)
                    .is_ok_and(|it| (1..=limits.caption_tokens).contains(&it))
            {
                return Err(Error::invalid(format!(
                    "field `{MAX_LENGTH}`: {tokens}, allowed: 1 to {}",
                    limits.caption_tokens
                )));
            }
        }
        let inputs = self.values.into_iter().map(|(field, value)| (field.input.to_owned(), value));
        let picture = match picture {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Ok(Invocation { picture, asked: Asked { answer, inputs: inputs.collect() } })
    }

    /// Two names of one thing are as wrong as one name twice.
    fn check_new<E: de::Error>(&self, field: &'static Field) -> Result<(), E> {
        let other = match field.kind {
            Kind::Picture => self.picture.as_ref().map(|(other, _)| *other),
            _ => {
                let mut fields = self.values.iter().map(|(other, _)| *other);
                fields.find(|other| other.input == field.input)
            }
        };
        match other {
            None => Ok(()),
            Some(other) if other == field => {
                Err(E::custom(format_args!("field `{}`: given twice", field.name)))
            }
            Some(other) => Err(E::custom(format_args!(
                "fields `{}` and `{}`: only one of them is allowed",
                other.name, field.name
            ))),
        }
    }
}

/// A JSON object whose fields go to `said`.
struct Object<'s, 'a> {
    said: &'s mut Said<'a>,
    limits: &'s Limits,
    /// Whether it is `parameters`.
    is_inner: bool,
}

impl<'a> DeserializeSeed<'a> for Object<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Object<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut had_parameters = false;
        while let Some(field) = map.next_key_seed(Key { is_inner: self.is_inner })? {
            if field.kind == Kind::Parameters {
                if std::mem::replace(&mut had_parameters, true) {
                    return Err(de::Error::custom("field `parameters`: given twice"));
                }
                map.next_value_seed(Parameters(Object {
                    said: &mut *self.said,
                    limits: self.limits,
                    is_inner: true,
                }))?;
                continue;
            }
            self.said.check_new(field)?;
            match map.next_value_seed(One { field, limits: self.limits })? {
                None => {}
                Some(Read::Picture(text)) => self.said.picture = Some((field, text)),
                Some(Read::Value(value)) => self.said.values.push((field, value)),
            }
        }
        Ok(())
    }
}

/// The object of `parameters`, or null.
struct Parameters<'s, 'a>(Object<'s, 'a>);

impl<'a> DeserializeSeed<'a> for Parameters<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// The methods of a visitor for the kinds of values that a field does not take.
macro_rules! refuse {
    ($($method:ident($type:ty) $what:literal,)*) => {
        $(fn $method<E: de::Error>(self, _: $type) -> Result<Self::Value, E> {
            Err(self.refused($what))
        })*
    };
}

impl<'a> Parameters<'_, 'a> {
    fn refused<E: de::Error>(&self, what: &str) -> E {
        let allowed = Kind::Parameters.allowed();
        E::custom(format_args!("field `{PARAMETERS}`: {what}, allowed: {allowed}"))
    }
}

impl<'a> Visitor<'a> for Parameters<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Kind::Parameters.allowed())
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, map: A) -> Result<(), A::Error> {
        self.0.visit_map(map)
    }

    fn visit_seq<A: SeqAccess<'a>>(self, _: A) -> Result<(), A::Error> {
        Err(self.refused("a list"))
    }

    refuse! {
        visit_str(&str) "a text",
        visit_bool(bool) "true or false",
        visit_i64(i64) "a number",
        visit_u64(u64) "a number",
        visit_f64(f64) "a number",
    }
}

/// A key of an object.
struct Key {
    is_inner: bool,
}

impl<'a> DeserializeSeed<'a> for Key {
    type Value = &'static Field;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<&'static Field, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = &'static Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<&'static Field, E> {
        let found = FIELDS.iter().find(|field| field.name == key);
        found.filter(|field| !(self.is_inner && field.kind == Kind::Parameters)).ok_or_else(|| {
            let within = if self.is_inner { " within `parameters`" } else { "" };
            E::custom(format_args!(
                "a field of {} bytes{within} that is not known, allowed: {}",
                key.len(),
                fields::names()
            ))
        })
    }
}

/// What a field held.
enum Read<'a> {
    Picture(Cow<'a, str>),
    Value(Value),
}

/// The value of a field; `None` for null, which is as good as leaving it out.
struct One<'s> {
    field: &'static Field,
    limits: &'s Limits,
}

impl<'a> DeserializeSeed<'a> for One<'_> {
    type Value = Option<Read<'a>>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl One<'_> {
    fn refused<E: de::Error>(&self, what: &str) -> E {
        let Field { name, kind, .. } = self.field;
        E::custom(format_args!("field `{name}`: {what}, allowed: {}", kind.allowed()))
    }

    /// A text of the field, which is no picture.
    fn text<E: de::Error>(&self, text: &str) -> Result<String, E> {
        let most = self.limits.text_bytes;
        if text.len() > most {
            let (name, length) = (self.field.name, text.len());
            return Err(E::custom(format_args!(
                "field `{name}`: a text of {length} bytes, at most {most} are allowed"
            )));
        }
        Ok(text.to_owned())
    }

    fn one_text<'a, E: de::Error>(&self, text: Cow<'a, str>) -> Result<Option<Read<'a>>, E> {
        match self.field.kind {
            Kind::Picture => Ok(Some(Read::Picture(text))),
            Kind::Text => Ok(Some(Read::Value(Value::Text(self.text(&text)?)))),
            Kind::Texts => Ok(Some(Read::Value(Value::Texts(vec![self.text(&text)?])))),
            _ => Err(self.refused("a text")),
        }
    }
}

impl<'a> Visitor<'a> for One<'_> {
    type Value = Option<Read<'a>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field.kind.allowed())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'a str) -> Result<Self::Value, E> {
        self.one_text(Cow::Borrowed(text))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.one_text(Cow::Owned(text.to_owned()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        match (self.field.kind, i32::try_from(number)) {
            (Kind::Whole, Ok(number)) => Ok(Some(Read::Value(Value::Whole(number)))),
            (Kind::Whole, Err(_)) => Err(self.refused("a number beyond 32 bits")),
            (Kind::Real, _) => Ok(Some(Read::Value(Value::Real(number as f32)))),
            _ => Err(self.refused("a number")),
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        // What is beyond an i64 is beyond all that is allowed, too.
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        match self.field.kind {
            Kind::Real => Ok(Some(Read::Value(Value::Real(number as f32)))),
            Kind::Whole => Err(self.refused("a number that is not whole or too large")),
            _ => Err(self.refused("a number")),
        }
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        if self.field.kind != Kind::Texts {
            return Err(self.refused("a list"));
        }
        let (name, most) = (self.field.name, self.limits.labels);
        let mut texts = Vec::new();
        while let Some(text) = list.next_element_seed(Label(&self))? {
            if texts.len() == most {
                return Err(de::Error::custom(format_args!(
                    "field `{name}`: more than {most} texts, at most {most} are allowed"
                )));
            }
            texts.push(text);
        }
        match texts[..] {
            [] => Err(self.refused("an empty list")),
            _ => Ok(Some(Read::Value(Value::Texts(texts)))),
        }
    }

    fn visit_map<A: MapAccess<'a>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(self.refused("an object"))
    }

    refuse! {
        visit_bool(bool) "true or false",
    }
}

/// One text of a list.
struct Label<'s>(&'s One<'s>);

impl<'a> DeserializeSeed<'a> for Label<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Label<'_> {
    fn refused<E: de::Error>(&self, what: &str) -> E {
        self.0.refused(&format!("a list with {what}"))
    }
}

impl<'a> Visitor<'a> for Label<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Kind::Text.allowed())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        self.0.text(text)
    }

    fn visit_unit<E: de::Error>(self) -> Result<String, E> {
        Err(self.refused("null"))
    }

    fn visit_seq<A: SeqAccess<'a>>(self, _: A) -> Result<String, A::Error> {
        Err(self.refused("a list"))
    }

    fn visit_map<A: MapAccess<'a>>(self, _: A) -> Result<String, A::Error> {
        Err(self.refused("an object"))
    }

    refuse! {
        visit_bool(bool) "true or false",
        visit_i64(i64) "a number",
        visit_u64(u64) "a number",
        visit_f64(f64) "a number",
    }
}
