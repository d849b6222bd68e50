//! From text to instructions.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::memory::SHARED;
use super::{Access, Action, Area, Instruction, Kernel, Module, Operation, Shuffle, Special};

/// The newest version and the cards that this driver knows, as numbers that can be compared.
const VERSION: (u32, u32) = (8, 2);
const TARGET: u32 = 75;

/// Threads of a block at most, where a kernel does not say.
const THREADS: u32 = 1024;

/// Parses a module.
///
/// # Errors
/// Words that name what is not known.
pub(crate) fn parse(text: &str) -> Result<Module, String> {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or(""));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut kernels = BTreeMap::new();
    let mut shared = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix(".visible .entry ") {
            let (kernel, after) = entry(after, &shared)?;
            kernels.insert(kernel.name.clone(), Arc::new(kernel));
            rest = after.trim_start();
            continue;
        }
        let is_line = [".version", ".target", ".address_size"].iter().any(|w| rest.starts_with(w));
        let (statement, after) = cut(rest, if is_line { '\n' } else { ';' })?;
        rest = after.trim_start();
        match statement.split_whitespace().collect::<Vec<_>>()[..] {
            [".version", version] => check_version(version)?,
            [".target", target] => check_target(target)?,
            [".address_size", "64"] => {}
            [".extern", ".shared", .., name] => {
                shared.push(name.trim_end_matches("[]").to_owned());
            }
            // Constants of the source, which no kernel reads: an instruction that does is refused.
            [".global", ..] => {}
            _ => return Err(format!("an unknown directive: {statement}")),
        }
    }
    Ok(Module { kernels })
}

fn check_version(version: &str) -> Result<(), String> {
    let parts = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parts {
        Some(known) if known <= VERSION => Ok(()),
        _ => Err(format!("version {version}: this driver knows {VERSION:?} and older ones")),
    }
}

fn check_target(target: &str) -> Result<(), String> {
    let number = target.strip_prefix("sm_").and_then(|number| number.parse::<u32>().ok());
    match number {
        Some(number) if number <= TARGET => Ok(()),
        _ => Err(format!("for {target}: this card is sm_{TARGET}")),
    }
}

/// What is before and behind the first `mark`.
fn cut(text: &str, mark: char) -> Result<(&str, &str), String> {
    let parts = text.split_once(mark);
    parts.ok_or_else(|| format!("no {mark:?} behind: {}", text.lines().next().unwrap_or("")))
}

/// The kernel at the start of `text`, and what is behind it.
fn entry<'t>(text: &'t str, shared: &[String]) -> Result<(Kernel, &'t str), String> {
    let (name, rest) = cut(text, '(')?;
    let (declared, rest) = cut(rest, ')')?;
    let (attributes, rest) = cut(rest, '{')?;
    let within = |message: String| format!("{}: {message}", name.trim());
    // Braces inside are those of vectors.
    let mut depth = 1;
    let end = rest.char_indices().find(|(_, character)| {
        depth += match character {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        depth == 0
    });
    let (end, _) = end.ok_or_else(|| within("its end is missing".to_owned()))?;
    let mut body = Body { shared: shared.to_vec(), ..Body::default() };
    let parameters = body.parameters(declared).map_err(within)?;
    let most_threads = match attributes.split_whitespace().collect::<Vec<_>>()[..] {
        [] => THREADS,
        [".maxntid", x, "1,", "1"] => {
            x.trim_end_matches(',').parse().map_err(|_| within(format!(".maxntid {x}")))?
        }
        _ => return Err(within(format!("unknown attributes: {attributes}"))),
    };
    for statement in rest[..end].split(';') {
        body.statement(statement.trim()).map_err(within)?;
    }
    let kernel = body.finish(name.trim(), parameters, most_threads).map_err(within)?;
    Ok((kernel, &rest[end + 1..]))
}

/// A kernel that is being read.
#[derive(Default)]
struct Body {
    shared: Vec<String>,
    /// By name, where each parameter is.
    places: BTreeMap<String, usize>,
    /// By the start of their names, the first register and how many there are.
    declared: BTreeMap<String, (usize, usize)>,
    registers: usize,
    constants: BTreeMap<u64, usize>,
    specials: Vec<(usize, Special)>,
    labels: BTreeMap<String, usize>,
    /// The instructions that go to a label which is not known yet.
    branches: Vec<(usize, String)>,
    instructions: Vec<Instruction>,
}

impl Body {
    fn parameters(&mut self, text: &str) -> Result<Vec<(usize, usize)>, String> {
        let mut all = Vec::new();
        let mut end = 0_usize;
        for parameter in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let [".param", kind, name] = parameter.split_whitespace().collect::<Vec<_>>()[..]
            else {
                return Err(format!("an unknown parameter: {parameter}"));
            };
            let size = size_of_kind(kind.trim_start_matches('.'))?;
            let offset = end.next_multiple_of(size);
            self.places.insert(name.to_owned(), offset);
            all.push((offset, size));
            end = offset + size;
        }
        Ok(all)
    }

    fn statement(&mut self, mut text: &str) -> Result<(), String> {
        while let Some((label, rest)) = text.strip_prefix('$').and_then(|rest| rest.split_once(':'))
        {
            self.labels.insert(format!("${label}"), self.instructions.len());
            text = rest.trim_start();
        }
        if text.is_empty() || text.starts_with(".pragma") {
            return Ok(());
        }
        if let Some(declared) = text.strip_prefix(".reg ") {
            return self.declare(declared);
        }
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(guarded) => {
                let (name, rest) = guarded
                    .split_once(char::is_whitespace)
                    .ok_or_else(|| format!("a guard of nothing: {text}"))?;
                let positive = name.trim_start_matches('!');
                (Some((self.register(positive)?, positive == name)), rest.trim())
            }
        };
        let (name, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let operands = split(operands);
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        let action = self.action(name, &operands).map_err(|error| format!("{text}: {error}"))?;
        self.instructions.push(Instruction { guard, action });
        Ok(())
    }

    /// `.f32 %f<382>`.
    fn declare(&mut self, text: &str) -> Result<(), String> {
        let parts = text.split_once('%').and_then(|(_, name)| {
            let (start, count) = name.split_once('<')?;
            Some((start, count.trim_end().strip_suffix('>')?.parse::<usize>().ok()?))
        });
        let (start, count) = parts.ok_or_else(|| format!("unknown registers: {text}"))?;
        self.declared.insert(start.to_owned(), (self.registers, count));
        self.registers += count;
        Ok(())
    }

    fn action(&mut self, name: &str, operands: &[&str]) -> Result<Action, String> {
        let mut parts = name.split('.');
        let action = match (parts.next().unwrap_or(""), operands) {
            ("ld", [values, address]) => Action::Load(self.access(name, values, address)?),
            ("st", [address, values]) => Action::Store(self.access(name, values, address)?),
            ("red", [address, value]) if name == "red.global.min.u32" => {
                Action::LowerTo(self.access("red.global.u32", value, address)?)
            }
            ("bra", [label]) => {
                self.branches.push((self.instructions.len(), (*label).to_owned()));
                Action::Branch(usize::MAX)
            }
            ("bar", ["0"]) if name == "bar.sync" => Action::Barrier,
            ("ret", []) => Action::Return,
            ("shfl", [to, from, distance, bounds, members]) if name == "shfl.sync.down.b32" => {
                let (to, is_there) = match to.split_once('|') {
                    None => (*to, None),
                    Some((to, is_there)) => (to, Some(self.register(is_there)?)),
                };
                Action::Shuffle(Shuffle {
                    to: self.register(to)?,
                    is_there,
                    from: self.operand(from, false)?,
                    distance: self.operand(distance, false)?,
                    bounds: self.operand(bounds, false)?,
                    members: self.operand(members, false)?,
                })
            }
            (_, [to, from @ ..]) => self.compute(name, to, from)?,
            _ => return Err("an unknown instruction".to_owned()),
        };
        Ok(action)
    }

    fn compute(&mut self, name: &str, to: &str, from: &[&str]) -> Result<Action, String> {
        let (operation, count) = Operation::named(name).ok_or("an unknown instruction")?;
        let from = match (operation, from) {
            (Operation::Insert64, [value, into, "32", "32"]) => &[*value, *into][..],
            (Operation::Insert64, _) => return Err("not the upper half".to_owned()),
            (_, from) => from,
        };
        if from.len() != count {
            return Err(format!("{} operands, not {count}", from.len()));
        }
        let mut operands = [0; 3];
        for (operand, text) in operands.iter_mut().zip(from) {
            *operand = self.operand(text, Operation::is_wide(name))?;
        }
        Ok(Action::Compute { operation, to: self.register(to)?, from: operands })
    }

    /// `ld.global.nc.v4.f32` of `{%f1,%f2,%f3,%f4}`, `[%rd1+16]`.
    fn access(&mut self, name: &str, values: &str, address: &str) -> Result<Access, String> {
        let mut parts = name.split('.').skip(1);
        let area = match parts.next() {
            Some("global") => Area::Global,
            Some("shared") => Area::Shared,
            Some("param") => Area::Parameters,
            _ => return Err("an unknown kind of memory".to_owned()),
        };
        // Reading past a cache changes no value.
        let mut parts = parts.filter(|part| !["nc", "cs"].contains(part)).collect::<Vec<_>>();
        let size = size_of_kind(parts.pop().unwrap_or(""))?;
        let count = match parts[..] {
            [] => 1,
            ["v2"] => 2,
            ["v4"] => 4,
            _ => return Err("an unknown way of access".to_owned()),
        };
        let values = values.trim_start_matches('{').trim_end_matches('}').split(',');
        let values: Vec<usize> =
            values.map(|value| self.operand(value.trim(), size == 8)).collect::<Result<_, _>>()?;
        if values.len() != count {
            return Err(format!("{} values, not {count}", values.len()));
        }
        let inside = address.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let inside = inside.ok_or("an address without brackets")?;
        let (base, offset) = match inside.split_once('+') {
            None => (inside, 0),
            Some((base, offset)) => (base, offset.parse().map_err(|_| "an unknown offset")?),
        };
        let base = match self.places.get(base) {
            Some(place) if area == Area::Parameters => self.constant(*place as u64),
            _ => self.operand(base, true)?,
        };
        Ok(Access { area, size, values, base, offset })
    }

    /// A register, a number, or an address, as a place among the registers.
    fn operand(&mut self, text: &str, is_wide: bool) -> Result<usize, String> {
        let special = match text {
            "%tid.x" => Some(Special::Thread),
            "%ntid.x" => Some(Special::Threads),
            "%ctaid.x" => Some(Special::Block),
            "%nctaid.x" => Some(Special::Blocks),
            _ => None,
        };
        if let Some(special) = special {
            let known = self.specials.iter().find(|(_, known)| *known == special);
            if let Some((place, _)) = known {
                return Ok(*place);
            }
            self.specials.push((self.registers, special));
            self.registers += 1;
            return Ok(self.registers - 1);
        }
        if text.starts_with('%') {
            return self.register(text);
        }
        if self.shared.iter().any(|name| name == text) {
            return Ok(self.constant(SHARED));
        }
        let value = match text.strip_prefix("0f") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse::<i64>().ok().map(i64::cast_unsigned),
        };
        let value = value.ok_or_else(|| format!("what is {text}?"))?;
        Ok(self.constant(if is_wide { value } else { value & 0xffff_ffff }))
    }

    fn register(&self, text: &str) -> Result<usize, String> {
        let name = text.strip_prefix('%').unwrap_or("");
        let start = name.trim_end_matches(|character: char| character.is_ascii_digit());
        let number = name[start.len()..].parse::<usize>().ok();
        let found = self.declared.get(start).zip(number);
        let found = found.filter(|((_, count), number)| number < count);
        found
            .map(|((first, _), number)| first + number)
            .ok_or_else(|| format!("no register {text}"))
    }

    fn constant(&mut self, value: u64) -> usize {
        let registers = &mut self.registers;
        *self.constants.entry(value).or_insert_with(|| {
            *registers += 1;
            *registers - 1
        })
    }

    fn finish(
        mut self,
        name: &str,
        parameters: Vec<(usize, usize)>,
        most_threads: u32,
    ) -> Result<Kernel, String> {
        for (instruction, label) in &self.branches {
            let to = self.labels.get(label).ok_or_else(|| format!("no label {label}"))?;
            self.instructions[*instruction].action = Action::Branch(*to);
        }
        Ok(Kernel {
            name: name.to_owned(),
            parameters,
            most_threads,
            registers: self.registers,
            constants: self.constants.into_iter().map(|(value, place)| (place, value)).collect(),
            specials: self.specials,
            instructions: self.instructions,
        })
    }
}

/// Operands, parted by commas outside of braces.
fn split(text: &str) -> Vec<String> {
    let mut operands = Vec::new();
    let mut depth = 0;
    for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        match operands.last_mut() {
            Some(last) if depth > 0 => *last = format!("{last},{piece}"),
            _ => operands.push(piece.to_owned()),
        }
        depth += piece.matches('{').count();
        depth -= piece.matches('}').count().min(depth);
    }
    operands
}

fn size_of_kind(kind: &str) -> Result<usize, String> {
    match kind {
        "u16" | "b16" => Ok(2),
        "u32" | "s32" | "b32" | "f32" => Ok(4),
        "u64" | "s64" | "b64" => Ok(8),
        _ => Err(format!("values of an unknown kind: {kind}")),
    }
}
