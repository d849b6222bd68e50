//! Tensors that are handed from one engine to another on a GPU: on an emulated one where there is none.
#![allow(missing_docs)]

use imprompt_cuda_emulated::Gpu as Driver;
use imprompt_engine::{Floats, Gpu, GpuPart, GpuStream, Held, HeldRows, Input, brought};
use imprompt_error::Kind;

/// A tensor of `shape` on the device of `stream`, with the numbers from `first` on.
fn there(stream: &GpuStream, shape: &[usize], first: usize) -> HeldRows {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (first..first + count).map(|value| value as f32).collect();
    let buffer = stream.zeros(count * 4).unwrap();
    stream.synchronize().unwrap();
    // SAFETY: the buffer is as long, and nothing uses it yet.
    unsafe { stream.device().write(buffer.address(), bytemuck::cast_slice(&values)) }.unwrap();
    HeldRows::on_gpu(buffer, shape.to_vec()).unwrap()
}

fn values(floats: &Floats<'_>) -> Vec<usize> {
    floats.to_host().unwrap().iter().map(|value| *value as usize).collect()
}

/// What lies where `rows` say that they are.
fn read(rows: &HeldRows) -> Vec<Vec<f32>> {
    let spans = rows.settled().unwrap().expect("they are on a GPU");
    let read = |span: &imprompt_engine::GpuSpan<'_>| {
        let mut bytes = vec![0; span.len()];
        span.read(&mut bytes).unwrap();
        bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
    };
    spans.iter().map(read).collect()
}

#[test]
fn rows_stay_on_their_gpu() {
    let _driver = Driver::new();
    let device = Gpu::open(0).unwrap();
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    let (one, two) = (there(&stream, &[3, 2], 0), there(&other, &[1, 2], 10));
    let part = one.part(2, vec![2, 2]).unwrap();
    assert_eq!(read(&part), [[2.0, 3.0, 4.0, 5.0]]);
    let joined = HeldRows::joined([&part, &two]).unwrap();
    assert_eq!(joined.shape(), [3, 2]);
    assert_eq!(read(&joined), [&[2.0, 3.0, 4.0, 5.0][..], &[10.0, 11.0]]);
    // On the host as well, once it is asked for.
    assert_eq!(values(&Floats::Held(joined.clone())), [2, 3, 4, 5, 10, 11]);
    // Whoever has a part has what it is of.
    drop((one, part));
    assert_eq!(values(&Floats::Held(joined.part(2, vec![1, 4]).unwrap())), [4, 5, 10, 11]);
    let is_brought_there =
        |device: &Gpu| matches!(brought(&Input::Held(&joined), device).unwrap(), GpuPart::There(_));
    assert!(is_brought_there(&device));
    let count = Gpu::count().unwrap();
    if count > 1 {
        assert!(!is_brought_there(&Gpu::open(1).unwrap()));
    }
}

#[test]
fn what_is_in_two_places_is_joined_on_the_host() {
    let _driver = Driver::new();
    let stream = Gpu::open(0).unwrap().stream().unwrap();
    let one = Floats::Held(there(&stream, &[1, 2], 5));
    let two = Floats::from(&[1.0, 2.0][..]);
    let joined = Floats::joined(&[&one, &two]).unwrap();
    assert_eq!(values(&joined), [5, 6, 1, 2]);
    assert!(joined.input(&[2, 2]).is_ok() && joined.input(&[2, 3]).is_err());
    let joined = Floats::joined(&[&one, &one]).unwrap();
    assert!(matches!(joined, Floats::Held(_)));
    assert!(joined.input(&[2, 2]).is_ok() && joined.input(&[4]).is_err());
}

#[test]
fn a_buffer_must_have_room_for_its_tensor() {
    let _driver = Driver::new();
    let stream = Gpu::open(0).unwrap().stream().unwrap();
    let of = |bytes: usize, shape: Vec<usize>| {
        HeldRows::on_gpu(stream.zeros(bytes).unwrap(), shape).map(drop).map_err(|e| e.kind())
    };
    assert_eq!(of(24, vec![3, 2]), Ok(()));
    assert_eq!(of(23, vec![3, 2]), Err(Kind::Internal));
    assert_eq!(of(24, vec![usize::MAX, 2]), Err(Kind::Internal));
}
