//! What `torch.save` writes of a dictionary of tensors, read without executing anything: a
//! reader of the few pickle operations that such a file has (protocols 2 and 3). It knows five
//! names (`collections.OrderedDict`, two functions that rebuild a tensor, one that rebuilds a
//! parameter, the storage types of torch) and what they mean; no other name is looked up, called
//! or accepted.
//!
//! It is total and bounded: values live in one list and refer to each other by number, so there is
//! no recursion, nothing is copied by a reference to it, and their count is limited.
//!
//! References: `pickletools.py` of CPython for the operations; `torch/serialization.py` and
//! `torch/_utils.py` for what they build.

use std::collections::HashMap;

use super::DType;

/// The longest pickle that is read; one of 2000 tensors has some 400 KB.
pub(super) const MAX_BYTES: u64 = 16 << 20;

/// Most values that a pickle may have; a tensor takes some 25.
const MAX_VALUES: usize = 1 << 21;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 16;

/// A piece of a file in the archive, as elements of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// The file's name in the archive's folder `data`.
    pub(super) key: &'a str,
    pub(super) dtype: DType,
    /// Elements that it has.
    pub(super) elements: u64,
}

/// A view of a storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tensor<'a> {
    pub(super) storage: Storage<'a>,
    /// Its first element, counted in elements of the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// Elements from one place to the next along each dimension.
    pub(super) strides: Vec<u64>,
}

/// The dictionary that `bytes` hold: names, and tensors; `None` where a value is no tensor.
///
/// # Errors
/// What is wrong, to follow the file's name.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(&str, Option<Tensor<'_>>)>, String> {
    let mut reader = Reader { rest: bytes, ..Reader::default() };
    let root = reader.run()?;
    let Value::Dict(entries) = &reader.values[root] else {
        return Err("is no dictionary of tensors".to_owned());
    };
    let entry = |&(key, value): &(Id, Id)| {
        let Value::Text(name) = reader.values[key] else {
            return Err("has a key that is no text".to_owned());
        };
        let tensor = match &reader.values[value] {
            Value::Tensor(tensor) => Some(tensor.clone()),
            _ => None,
        };
        Ok((name, tensor))
    };
    entries.iter().map(entry).collect()
}

/// A value's number.
type Id = usize;

#[derive(Debug)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Name(Name),
    Storage(Storage<'a>),
    Tensor(Tensor<'a>),
}

/// What a global name means.
#[derive(Clone, Copy, Debug)]
enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageType(DType),
}

impl Name {
    fn find(module: &str, name: &str) -> Option<Self> {
        let dtype = match (module, name) {
            ("collections", "OrderedDict") => return Some(Name::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => return Some(Name::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => return Some(Name::RebuildParameter),
            ("torch", "FloatStorage") => DType::F32,
            ("torch", "HalfStorage") => DType::F16,
            ("torch", "BFloat16Storage") => DType::BF16,
            ("torch", "DoubleStorage") => DType::F64,
            ("torch", "LongStorage") => DType::I64,
            ("torch", "IntStorage") => DType::I32,
            ("torch", "ShortStorage") => DType::I16,
            ("torch", "CharStorage") => DType::I8,
            ("torch", "ByteStorage") => DType::U8,
            ("torch", "BoolStorage") => DType::BOOL,
            _ => return None,
        };
        Some(Name::StorageType(dtype))
    }
}

#[derive(Default)]
struct Reader<'a> {
    rest: &'a [u8],
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Reader<'a> {
    /// Runs to the end; the value that is left.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let [operation] = self.take()?;
            match operation {
                b'.' => return self.pop(),
                _ => self.step(operation)?,
            }
        }
    }

    fn step(&mut self, operation: u8) -> Result<(), String> {
        match operation {
            // PROTO
            0x80 => match self.take()? {
                [2 | 3] => Ok(()),
                [other] => Err(format!("is a pickle of protocol {other}, 2 and 3 are read")),
            },
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Value::None),
            // NEWTRUE, NEWFALSE
            0x88 | 0x89 => self.push(Value::Bool),
            b'K' => {
                let [byte] = self.take()?;
                self.push(Value::Int(byte.into()))
            }
            b'M' => {
                let bytes = self.take()?;
                self.push(Value::Int(u16::from_le_bytes(bytes).into()))
            }
            b'J' => {
                let bytes = self.take()?;
                self.push(Value::Int(i32::from_le_bytes(bytes).into()))
            }
            // LONG1
            0x8a => {
                let long = self.long()?;
                self.push(Value::Int(long))
            }
            b'X' => {
                let text = self.text()?;
                self.push(Value::Text(text))
            }
            b'}' => self.push(Value::Dict(vec![])),
            b')' => self.push(Value::Tuple(vec![])),
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => self.tuple(usize::from(operation - 0x84)),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items))
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)
            }
            b'h' | b'j' | b'q' | b'r' => self.memo(operation),
            b'c' => self.global(),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            b'b' => self.build(),
            other => Err(format!(
                "has the pickle operation {other:#04x}, which a dictionary of tensors does not need"
            )),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(ended)?;
        self.rest = rest;
        Ok(*head)
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("has more than {MAX_VALUES} values"));
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    /// The topmost value, which the last mark does not hold.
    fn pop(&mut self) -> Result<Id, String> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err(empty());
        }
        self.stack.pop().ok_or_else(empty)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or_else(empty)?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, length: usize) -> Result<(), String> {
        let mut items = (0..length).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn long(&mut self) -> Result<i64, String> {
        let [length] = self.take()?;
        let (bytes, rest) = self.rest.split_at_checked(usize::from(length)).ok_or_else(ended)?;
        self.rest = rest;
        if bytes.len() > 8 {
            return Err(format!("has an integer of {} bytes", bytes.len()));
        }
        let sign = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = if sign { [0xff; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = u32::from_le_bytes(self.take()?) as usize;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(ended)?;
        self.rest = rest;
        std::str::from_utf8(bytes).map_err(|_| "has a text that is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(ended)?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        std::str::from_utf8(line).map_err(|_| "has a name that is not UTF-8".to_owned())
    }

    /// BINGET and LONG_BINGET, BINPUT and LONG_BINPUT.
    fn memo(&mut self, operation: u8) -> Result<(), String> {
        let slot = match operation {
            b'h' | b'q' => u32::from(self.take::<1>()?[0]),
            _ => u32::from_le_bytes(self.take()?),
        };
        if matches!(operation, b'q' | b'r') {
            let top = *self.stack.last().ok_or_else(empty)?;
            self.memo.insert(slot, top);
        } else {
            let value = self.memo.get(&slot).ok_or("refers to a value that is not there")?;
            self.stack.push(*value);
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let target = *self.stack.last().ok_or_else(empty)?;
        let Value::Dict(entries) = &mut self.values[target] else {
            return Err("sets items of what is no dictionary".to_owned());
        };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("sets a key without a value".to_owned());
        }
        entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        Ok(())
    }

    fn global(&mut self) -> Result<(), String> {
        let (module, name) = (self.line()?, self.line()?);
        let known = Name::find(module, name).ok_or_else(|| {
            let shown: String = format!("{module}.{name}").chars().take(80).collect();
            format!("asks for {shown:?}, which is not needed for tensors and never run")
        })?;
        self.push(Value::Name(known))
    }

    /// `('storage', type, key, device, elements)`, as torch/serialization.py writes it.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let wrong = || "has a storage that torch.save does not write".to_owned();
        let items = self.items(id).ok_or_else(wrong)?;
        let &[kind, dtype, key, _device, elements] = items else { return Err(wrong()) };
        let storage = match (
            &self.values[kind],
            &self.values[dtype],
            &self.values[key],
            &self.values[elements],
        ) {
            (
                Value::Text("storage"),
                Value::Name(Name::StorageType(dtype)),
                Value::Text(key),
                Value::Int(elements),
            ) => Storage {
                key,
                dtype: *dtype,
                elements: u64::try_from(*elements).map_err(|_| wrong())?,
            },
            _ => return Err(wrong()),
        };
        self.push(Value::Storage(storage))
    }

    /// Calls of the few functions that are known.
    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Name(name) = self.values[function] else {
            return Err("calls what is no function".to_owned());
        };
        let items = self.items(arguments).ok_or("calls a function without arguments")?;
        let value = match (name, items) {
            (Name::OrderedDict, []) => Value::Dict(vec![]),
            // storage, offset, size, stride, requires_grad, backward_hooks. A seventh argument
            // marks a conjugate or negative view, whose elements are not what is stored.
            (Name::RebuildTensor, &[storage, offset, size, stride, _, _]) => {
                Value::Tensor(self.tensor(storage, offset, size, stride)?)
            }
            // data, requires_grad, backward_hooks
            (Name::RebuildParameter, &[tensor, _, _]) => match &self.values[tensor] {
                Value::Tensor(tensor) => Value::Tensor(tensor.clone()),
                _ => return Err("has a parameter without a tensor".to_owned()),
            },
            _ => return Err(format!("calls {name:?} with {} arguments", items.len())),
        };
        self.push(value)
    }

    fn tensor(&self, storage: Id, offset: Id, size: Id, stride: Id) -> Result<Tensor<'a>, String> {
        let wrong = || "has a tensor that torch.save does not write".to_owned();
        let Value::Storage(storage) = self.values[storage] else { return Err(wrong()) };
        let shape = self.sizes(size).ok_or_else(wrong)?;
        let strides = self.sizes(stride).ok_or_else(wrong)?;
        if shape.len() != strides.len() {
            return Err(wrong());
        }
        Ok(Tensor { storage, offset: self.size(offset).ok_or_else(wrong)?, shape, strides })
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn size(&self, id: Id) -> Option<u64> {
        match self.values[id] {
            Value::Int(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<u64>> {
        let items = self.items(id).filter(|items| items.len() <= MAX_DIMENSIONS)?;
        items.iter().map(|item| self.size(*item)).collect()
    }

    /// Attributes of a dictionary: torch keeps the versions of modules there, which say nothing of
    /// the tensors.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        let target = *self.stack.last().ok_or_else(empty)?;
        match self.values[target] {
            Value::Dict(_) => Ok(()),
            _ => Err("sets attributes of what is no dictionary".to_owned()),
        }
    }
}

fn ended() -> String {
    "ends in the middle of its pickle".to_owned()
}

fn empty() -> String {
    "takes a value where its pickle has none".to_owned()
}
