//! One request's buffers to tensors.

use std::borrow::Cow;

use imprompt_error::{Error, Result};
use imprompt_stage::{Data, Dtype, GpuBuffer, HeldRows, Signature, Tensor, TensorSpec};
use imprompt_wire::Limits;

/// The bytes of an input, none of them checked.
#[derive(Debug)]
pub enum RawBytes<'a> {
    /// On the host, in order, in any number of pieces.
    Pieces(Vec<&'a [u8]>),
    /// In a copy on the GPU of the instance. Of floats alone.
    OnGpu(GpuBuffer),
}

/// One input as a host hands it over.
#[derive(Debug)]
pub struct RawInput<'a> {
    /// The name.
    pub name: &'a str,
    /// The element type; `None`: one that no stage takes.
    pub dtype: Option<Dtype>,
    /// The shape, batch dimension first.
    pub shape: &'a [i64],
    /// The bytes.
    pub bytes: RawBytes<'a>,
}

/// The batch size and tensors of one request.
///
/// Byte strings and integers are copied before they are looked at: a client
/// that sends its input through shared memory can change it meanwhile. Floats
/// that lie well are borrowed: no length or text is derived from them.
///
/// # Errors
/// `InvalidInput` that names the input: not one of the stage's, of another
/// type or shape, of a batch size that differs from the first input's, or with
/// bytes that are not those of its shape.
pub fn gather<'a>(
    inputs: Vec<RawInput<'a>>,
    signature: &Signature,
) -> Result<(usize, Vec<Tensor<'a>>)> {
    let mut batch = None;
    let mut tensors = Vec::with_capacity(inputs.len());
    for input in inputs {
        let tensor = tensor(input, signature)?;
        let own = tensor.shape[0];
        let batch = *batch.get_or_insert(own);
        if own != batch {
            return Err(Error::invalid(format!(
                "input `{}`: a batch of {own}, the first input has {batch}",
                tensor.name
            )));
        }
        tensors.push(tensor);
    }
    match batch {
        None | Some(0) => Err(Error::invalid("the request has no items")),
        Some(batch) => Ok((batch, tensors)),
    }
}

fn tensor<'a>(input: RawInput<'a>, signature: &Signature) -> Result<Tensor<'a>> {
    let of = format!("input `{}`", input.name);
    let spec = signature.inputs.iter().find(|spec| spec.name == input.name);
    // The name is the server's own: it has checked it against config.pbtxt.
    let spec = spec.ok_or_else(|| Error::invalid(format!("{of}: not an input of this model")))?;
    let is_apart = matches!(input.bytes, RawBytes::OnGpu(_)) && spec.dtype != Dtype::Fp32;
    if input.dtype != Some(spec.dtype) || is_apart {
        return Err(Error::invalid(format!("{of}: the type must be {}", spec.dtype)));
    }
    let elements = imprompt_wire::element_count(&of, input.shape)?;
    check_shape(&of, input.shape, spec)?;
    // No axis is negative: `element_count` has refused it.
    let shape: Vec<usize> =
        input.shape.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect();
    let pieces = match input.bytes {
        RawBytes::Pieces(pieces) => pieces,
        RawBytes::OnGpu(copy) => {
            let data = held(&of, copy, elements, &shape)?;
            return Ok(Tensor { name: Cow::Borrowed(input.name), shape, data });
        }
    };
    let data = match spec.dtype {
        Dtype::Bytes => {
            let values = imprompt_wire::decode(&of, &pieces, elements, &Limits::default())?;
            Data::Bytes(values.into_iter().map(|value| Cow::Owned(value.into_owned())).collect())
        }
        Dtype::Fp32 => Data::F32(floats(&of, &pieces, elements)?),
        Dtype::Int32 => Data::I32(Cow::Owned(words(&of, &pieces, elements, i32::from_le_bytes)?)),
    };
    Ok(Tensor { name: Cow::Borrowed(input.name), shape, data })
}

fn check_shape(of: &str, shape: &[i64], spec: &TensorSpec) -> Result<()> {
    let fits = |(&size, &wanted): (&i64, &i64)| wanted == -1 || size == wanted;
    let Some((_, item)) = shape.split_first() else {
        return Err(Error::invalid(format!("{of}: the shape has no batch dimension")));
    };
    if item.len() != spec.dims.len() || !item.iter().zip(&spec.dims).all(fits) {
        return Err(Error::invalid(format!(
            "{of}: an item has shape {item:?}, expected {:?} (-1: any size)",
            spec.dims
        )));
    }
    Ok(())
}

/// The floats of `copy`, of which there must be exactly as many.
fn held<'a>(of: &str, copy: GpuBuffer, elements: usize, shape: &[usize]) -> Result<Data<'a>> {
    if Some(copy.len()) != elements.checked_mul(4) {
        return Err(wrong_bytes(of, copy.len(), elements));
    }
    Ok(Data::Held(HeldRows::on_gpu(copy, shape.to_vec())?))
}

fn wrong_bytes(of: &str, bytes: usize, elements: usize) -> Error {
    Error::invalid(format!("{of}: {bytes} bytes for {elements} values of 4 bytes"))
}

fn floats<'a>(of: &str, pieces: &[&'a [u8]], elements: usize) -> Result<Cow<'a, [f32]>> {
    if cfg!(target_endian = "little")
        && let [piece] = *pieces
        && let Ok(values) = bytemuck::try_cast_slice::<u8, f32>(piece)
        && values.len() == elements
    {
        return Ok(Cow::Borrowed(values));
    }
    words(of, pieces, elements, f32::from_le_bytes).map(Cow::Owned)
}

/// The 4-byte values of all pieces, wherever the pieces are cut.
fn words<T>(
    of: &str,
    pieces: &[&[u8]],
    elements: usize,
    value: fn([u8; 4]) -> T,
) -> Result<Vec<T>> {
    let bytes = pieces.iter().try_fold(0usize, |sum, piece| sum.checked_add(piece.len()));
    if bytes.is_none() || bytes != elements.checked_mul(4) {
        return Err(wrong_bytes(of, bytes.unwrap_or(usize::MAX), elements));
    }
    let mut values = Vec::new();
    values
        .try_reserve_exact(elements)
        .map_err(|_| Error::out_of_memory(format!("{of}: {elements} values")))?;
    let mut word = [0u8; 4];
    let mut filled = 0;
    for &byte in pieces.iter().copied().flatten() {
        word[filled] = byte;
        filled += 1;
        if filled == 4 {
            values.push(value(word));
            filled = 0;
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use imprompt_error::Kind;
    use imprompt_stage::StageKind;

    fn input<'a>(
        name: &'a str,
        dtype: Dtype,
        shape: &'a [i64],
        pieces: Vec<&'a [u8]>,
    ) -> RawInput<'a> {
        RawInput { name, dtype: Some(dtype), shape, bytes: RawBytes::Pieces(pieces) }
    }

    fn bytes<'a>(name: &'a str, shape: &'a [i64], pieces: Vec<&'a [u8]>) -> RawInput<'a> {
        input(name, Dtype::Bytes, shape, pieces)
    }

    fn refused(inputs: Vec<RawInput<'_>>, kind: StageKind) -> String {
        let error = gather(inputs, &kind.signature()).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidInput);
        error.message().to_owned()
    }

    #[test]
    fn tensors_come_out_of_many_pieces() {
        let values: Vec<f32> = (0..6).map(|n| n as f32).collect();
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let inputs = [
            input("image_embeds", Dtype::Fp32, &[2, 3], vec![&raw[..5], &[], &raw[5..]]),
            bytes("caption", &[2, 1], vec![b"\x02\0", b"\0\0h", b"i\0\0\0\0"]),
            input("max_flavors", Dtype::Int32, &[2, 1], vec![b"\x01\0\0\0\xff", b"\xff\xff\xff"]),
        ];
        let (batch, tensors) = gather(inputs.into(), &StageKind::Ranker.signature()).unwrap();
        assert_eq!(batch, 2);
        assert_eq!(tensors[0].data, Data::F32(values.into()));
        assert_eq!(tensors[1].data, Data::Bytes(vec![b"hi"[..].into(), b""[..].into()]));
        assert_eq!(tensors[2].data, Data::I32(vec![1, -1].into()));
    }

    #[test]
    fn floats_in_one_aligned_piece_are_borrowed() {
        let values = [1.0f32, 2.0];
        let whole: &[u8] = bytemuck::cast_slice(&values);
        let borrowed = floats("x", &[whole], 2).unwrap();
        assert!(matches!(borrowed, Cow::Borrowed(_)));
        let odd: Vec<u8> = std::iter::once(0).chain(whole.iter().copied()).collect();
        assert_eq!(floats("x", &[&odd[1..]], 2).unwrap(), borrowed);
        assert!(floats("x", &[&odd], 2).is_err());
        assert!(floats("x", &[whole], 1).is_err());
    }

    #[test]
    fn what_lies_is_refused_by_name() {
        use StageKind::{Preprocess, Tagger};
        let good: &[u8] = b"\x01\0\0\0a";
        let lying = bytes("image", &[1, 1], vec![b"\xff\xff\xff\xffa"]);
        assert!(refused(vec![lying], Preprocess).starts_with("input `image`: element 0 declares"));
        let none = bytes("labels", &[1, 0], vec![]);
        assert!(refused(vec![none], Tagger).contains("input `labels`: 0 elements"));
        assert!(refused(vec![], Preprocess).contains("no items"));
        let rank = bytes("image", &[1], vec![good]);
        assert!(refused(vec![rank], Preprocess).contains("shape [], expected [1]"));
        assert!(refused(vec![bytes("image", &[], vec![good])], Preprocess).contains("no batch"));
        let two = bytes("image", &[1, 2], vec![b"\x01\0\0\0a\0\0\0\0"]);
        assert!(refused(vec![two], Preprocess).contains("shape [2]"));
        assert!(refused(vec![bytes("image", &[-1, 1], vec![good])], Preprocess).contains("-1"));
        assert!(
            refused(vec![bytes("other", &[1, 1], vec![good])], Preprocess).contains("not an input")
        );
        let float = input("image", Dtype::Fp32, &[1, 1], vec![good]);
        assert!(refused(vec![float], Preprocess).contains("must be BYTES"));
        let apart = [bytes("mode", &[1, 1], vec![good]), bytes("caption", &[2, 1], vec![good])];
        assert!(
            refused(apart.into(), StageKind::Ranker).contains("`caption`: 5 bytes are too few")
        );
        let apart =
            [bytes("mode", &[1, 1], vec![good]), bytes("caption", &[2, 1], vec![good, good])];
        assert!(
            refused(apart.into(), StageKind::Ranker)
                .contains("a batch of 2, the first input has 1")
        );
        let short = input("max_flavors", Dtype::Int32, &[1, 1], vec![b"\x01\0\0"]);
        assert!(refused(vec![short], StageKind::Ranker).contains("3 bytes for 1 values"));
    }
}
