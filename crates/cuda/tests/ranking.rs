//! The kernels' order of sums against the processor's, and the kernels: on a GPU, and on an emulated
//! one where there is none.
#![allow(missing_docs, clippy::single_range_in_vec_init)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use bytemuck::cast_slice;
use half::f16;
use imprompt_cuda::{Chunks, Device, Feed, Part, Ranking, Stream, Table};
use imprompt_cuda_emulated::Gpu;
use imprompt_interrogate::rank::{Stages, dot, rank, rank_exact};
use imprompt_similarity::similarities;

/// Numbers of many magnitudes, the same ones every time.
fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() * (next() * 6.0).exp2()).collect()
}

fn halves(values: &[f32]) -> Vec<f16> {
    values.iter().map(|value| f16::from_f32(*value)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Lets every thread add what the one `distance` after it has.
fn shuffle_down<const N: usize>(threads: &mut [[f32; N]], distance: usize) {
    for thread in 0..threads.len() - distance {
        let other = threads[thread + distance];
        threads[thread].iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
}

/// `similarities_f16` of the kernels: eight threads a row, each with eight sums.
fn as_the_kernel_f16(row: &[f16], image: &[f32]) -> f32 {
    let mut threads = [[0.0_f32; 8]; 8];
    for k in 0..row.len().next_multiple_of(64) {
        let sum = &mut threads[k % 64 / 8][k % 8];
        let pair = row.get(k).zip(image.get(k)).map_or((0.0, 0.0), |(a, b)| (a.to_f32(), *b));
        *sum = pair.0.mul_add(pair.1, *sum);
    }
    for distance in [4, 2, 1] {
        shuffle_down(&mut threads, distance);
    }
    let mut sums = threads[0];
    for width in [4, 2, 1] {
        for sum in 0..width {
            sums[sum] += sums[sum + width];
        }
    }
    sums[0]
}

/// `similarities_f32` of the kernels: four threads a row, each with four sums.
fn as_the_kernel_f32(row: &[f32], image: &[f32]) -> f32 {
    let mut threads = [[0.0_f32; 4]; 4];
    let whole = row.len() / 16 * 16;
    for k in 0..whole {
        threads[k % 16 / 4][k % 4] += row[k] * image[k];
    }
    for distance in [2, 1] {
        shuffle_down(&mut threads, distance);
    }
    let tail = (whole..row.len()).fold(-0.0, |tail: f32, k| tail + row[k] * image[k]);
    let [a, b, c, d] = threads[0];
    ((a + c) + (b + d)) + tail
}

/// Widths of models' embeddings, and others.
const WIDTHS: [usize; 15] = [1, 3, 8, 15, 16, 20, 64, 128, 130, 200, 512, 640, 768, 1024, 1030];

#[test]
fn the_kernels_order_is_the_processors() {
    for (seed, dimension) in (1..).zip(WIDTHS) {
        let (rows, image) = (noise(dimension * 37, seed), noise(dimension, seed + 100));
        let table = halves(&rows);
        let expected = similarities(&[&table], &image, dimension, 1).concat();
        let found: Vec<f32> =
            table.chunks(dimension).map(|row| as_the_kernel_f16(row, &image)).collect();
        assert_eq!(bits(&found), bits(&expected), "float16, {dimension}");
        for row in rows.chunks(dimension) {
            let (found, expected) = (as_the_kernel_f32(row, &image), dot(row, &image));
            assert_eq!(found.to_bits(), expected.to_bits(), "float32, {dimension}");
        }
    }
    // Products that are too small for a number, with either sign.
    for sign in [1.0, -1.0] {
        for dimension in [5, 64, 70] {
            let (row, image) = (vec![f16::from_bits(1); dimension], vec![sign * 1e-40; dimension]);
            let expected = similarities(&[&row], &image, dimension, 1).concat();
            assert_eq!(bits(&[as_the_kernel_f16(&row, &image)]), bits(&expected));
            let row: Vec<f32> = vec![1e-30; dimension];
            let found = as_the_kernel_f32(&row, &image);
            assert_eq!(found.to_bits(), dot(&row, &image).to_bits());
        }
    }
}

/// A stream of the first GPU.
fn stream() -> Stream {
    let device = Device::open(0).unwrap();
    println!("on {} {}", device.name(), device.compute_capability());
    device.stream().unwrap()
}

#[test]
fn products_with_tables_have_the_processors_bits() {
    let _gpu = Gpu::new();
    let stream = stream();
    let mut ranking = Ranking::new(&stream).unwrap();
    for (seed, dimension) in (1..).zip(WIDTHS) {
        let count = [1, 31, 33, 1003, 4099][seed as usize % 5];
        let table = halves(&noise(dimension * count, seed));
        let (first, second) = table.split_at(count / 3 * dimension);
        let there = Arc::new(Table::upload(&stream, &[first, second], dimension).unwrap());
        assert_eq!((there.rows(), there.dimension()), (count, dimension));
        for images in [1, 2, 5] {
            let images = noise(dimension * images, seed + 50);
            ranking.compare(&there, &[0..count], &images).unwrap();
            let expected = similarities(&[&table], &images, dimension, 1).concat();
            let found = ranking.similarities().unwrap();
            assert_eq!(bits(&found), bits(&expected), "{count} x {dimension}");
            assert_eq!(ranking.first_wrong().unwrap(), None);
            // Ranges, not in their order, and one of nothing.
            let (end, middle) = (count / 2..count, count / 5..count / 4);
            let ranges = [end.clone(), 1..1, middle.clone()];
            ranking.compare(&there, &ranges, &images).unwrap();
            let rows = |range: &std::ops::Range<usize>| {
                &table[range.start * dimension..range.end * dimension]
            };
            let expected = similarities(&[rows(&end), rows(&middle)], &images, dimension, 1);
            assert_eq!(bits(&ranking.similarities().unwrap()), bits(&expected.concat()));
        }
    }
}

#[test]
fn products_with_texts_have_the_processors_bits() {
    let _gpu = Gpu::new();
    let stream = stream();
    let mut ranking = Ranking::new(&stream).unwrap();
    let mut feed = Feed::new(&stream).unwrap();
    for (seed, dimension) in (1..).zip(WIDTHS) {
        let image = noise(dimension, seed);
        let runs: Vec<Vec<f32>> = [1, 16, 17, 0, 500]
            .map(|rows| noise(rows * dimension, seed + rows as u32))
            .into_iter()
            .collect();
        let parts: Vec<Part<'_>> = runs.iter().map(|run| Part::Host(cast_slice(run))).collect();
        ranking.compare_texts(&image, 534).unwrap();
        for span in feed.spans(&parts).unwrap() {
            ranking.add(span).unwrap();
        }
        let expected: Vec<f32> =
            runs.concat().chunks(dimension).map(|row| dot(row, &image)).collect();
        assert_eq!(bits(&ranking.similarities().unwrap()), bits(&expected), "{dimension}");
        assert!(ranking.add(feed.spans(&parts[1..2]).unwrap()[0]).is_err(), "more than was said");
    }
}

/// `Stages` with the first stage on the GPU.
fn rank_there(
    ranking: &mut Ranking,
    range: std::ops::Range<usize>,
    (chunk_size, count): (usize, usize),
    reverse: bool,
) -> Vec<usize> {
    let stages = Stages::new(range.len(), chunk_size, count);
    let chunks = Chunks { size: stages.chunk, keep: stages.keep };
    let kept = ranking.best(range, chunks, reverse).unwrap();
    stages.finish(kept).into_iter().map(|(index, _)| index).collect()
}

#[test]
fn the_best_are_the_processors() {
    let gpu = Gpu::new();
    let stream = stream();
    let mut ranking = Ranking::new(&stream).unwrap();
    // An emulated GPU takes its time.
    let most = if gpu.emulated().is_some() { 6_011 } else { 30_011 };
    for count in [1, 2, 72, 2047, 2048, 2049, most] {
        // One value a row, so that the products are the values: many equal ones, and zeros of
        // either sign.
        for coarse in [true, false] {
            let values = noise(count, count as u32);
            let value = |value: &f32| if coarse { (value * 3.0).round() * 0.5 } else { *value };
            let table = halves(&values.iter().map(value).collect::<Vec<_>>());
            let there = Arc::new(Table::upload(&stream, &[&table], 1).unwrap());
            ranking.compare(&there, &[0..count], &[1.0]).unwrap();
            let values = ranking.similarities().unwrap();
            for range in [0..count, count / 3..count, count / 2..count / 2] {
                for rule in [(2048, 2048), (2048, 7), (1024, 1024), (1000, 40), (2, 3), (2048, 0)] {
                    for reverse in [false, true] {
                        let found = rank_there(&mut ranking, range.clone(), rule, reverse);
                        let values = &values[range.clone()];
                        let expected = rank(values, rule.0, rule.1, reverse);
                        assert_eq!(
                            found, expected,
                            "{count} {coarse} {range:?} {rule:?} {reverse}"
                        );
                    }
                }
                // The best of all, whatever chunk they are in.
                let chunks = Chunks { size: 2048, keep: 10 };
                let mut kept = ranking.best(range.clone(), chunks, false).unwrap();
                kept.sort_by(|(a, x), (b, y)| (y + 0.0).total_cmp(&(x + 0.0)).then(a.cmp(b)));
                let found: Vec<usize> = kept.iter().take(10).map(|(index, _)| *index).collect();
                assert_eq!(found, rank_exact(&values[range.clone()], 10));
                for (index, value) in kept {
                    assert_eq!(value.to_bits(), values[range.start + index].to_bits());
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let _gpu = Gpu::new();
    let stream = stream();
    let mut ranking = Ranking::new(&stream).unwrap();
    let mut rows = halves(&noise(64 * 500, 1));
    rows[64 * 401 + 3] = f16::NAN;
    rows[64 * 300 + 63] = f16::INFINITY;
    let table = Arc::new(Table::upload(&stream, &[&rows], 64).unwrap());
    ranking.compare(&table, &[0..500], &noise(64, 2)).unwrap();
    assert_eq!(ranking.first_wrong().unwrap(), Some(300));
    ranking.compare(&table, &[301..500, 0..10], &noise(64, 2)).unwrap();
    assert_eq!(ranking.first_wrong().unwrap(), Some(100));
    ranking.compare(&table, &[0..300], &noise(64, 2)).unwrap();
    assert_eq!(ranking.first_wrong().unwrap(), None);
    let chunks = Chunks { size: 2048, keep: 3 };
    assert!(ranking.best(0..301, chunks, false).is_err());
    assert!(ranking.best(0..300, Chunks { size: 2049, keep: 3 }, false).is_err());
    assert!(ranking.best(0..300, Chunks { size: 0, keep: 3 }, false).is_err());
    assert!(ranking.compare(&table, &[0..501], &noise(64, 2)).is_err());
    assert!(ranking.compare(&table, &[0..5], &noise(63, 2)).is_err());
    ranking.compare(&table, &[], &noise(64, 2)).unwrap();
    assert!(ranking.similarities().unwrap().is_empty());
    assert!(ranking.best(0..0, chunks, false).unwrap().is_empty());
    assert!(Table::upload(&stream, &[&rows[1..]], 64).is_err());
    assert!(Table::upload(&stream, &[&rows], 0).is_err());
    let other = Device::open(0).unwrap().stream().unwrap();
    let mut feed = Feed::new(&other).unwrap();
    let values = [0_u8; 256];
    assert!(ranking.add(feed.spans(&[Part::Host(&values)]).unwrap()[0]).is_err(), "no comparison");
    ranking.compare_texts(&noise(64, 2), 1).unwrap();
    assert!(ranking.add(feed.spans(&[Part::Host(&values)]).unwrap()[0]).is_err(), "another stream");
}

/// Median milliseconds of one of `work`.
fn timed(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..30)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
fn a_large_table_in_little_time() {
    let gpu = Gpu::new();
    if gpu.emulated().is_some() {
        println!("skipped: there is no GPU, and an emulated one says nothing about time");
        return;
    }
    let stream = stream();
    let (count, dimension) = (111_867, 768);
    let started = Instant::now();
    let mut ranking = Ranking::new(&stream).unwrap();
    println!("kernels loaded in {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let rows = halves(&noise(count * dimension, 9));
    let images = noise(dimension * 8, 10);
    let started = Instant::now();
    let table = Arc::new(Table::upload(&stream, &[&rows], dimension).unwrap());
    println!("{count} x {dimension} uploaded in {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    for images in [&images[..dimension], &images] {
        let product = timed(|| {
            ranking.compare(&table, &[0..count], images).unwrap();
            stream.synchronize().unwrap();
        });
        let processor = timed(|| {
            black_box(similarities(&[&rows], black_box(images), dimension, 0));
        });
        let number = images.len() / dimension;
        println!("product, {number} images: {product:.3} ms; the processor's: {processor:.3} ms");
    }
    ranking.compare(&table, &[0..count], &images[..dimension]).unwrap();
    let values = ranking.similarities().unwrap();
    let expected = similarities(&[&rows], &images[..dimension], dimension, 0).concat();
    assert_eq!(bits(&values), bits(&expected));
    let download = timed(|| {
        black_box(ranking.similarities().unwrap());
    });
    println!("all {count} downloaded in {download:.3} ms");
    let rule = (2048, 2048);
    for reverse in [false, true] {
        let found = rank_there(&mut ranking, 0..count, rule, reverse);
        assert_eq!(found, rank(&values, rule.0, rule.1, reverse));
        let there = timed(|| {
            black_box(rank_there(&mut ranking, 0..count, rule, reverse));
        });
        let here = timed(|| {
            black_box(rank(black_box(&values), rule.0, rule.1, reverse));
        });
        println!("the best 2048, downloaded: {there:.3} ms; the processor's: {here:.3} ms");
    }
    let embeds = noise(2048 * dimension, 11);
    let mut feed = Feed::new(&stream).unwrap();
    let spans = feed.spans(&[Part::Host(cast_slice(&embeds))]).unwrap();
    let texts = timed(|| {
        ranking.compare_texts(&images[..dimension], 2048).unwrap();
        ranking.add(spans[0]).unwrap();
        black_box(ranking.similarities().unwrap());
    });
    println!("2048 texts and an image, downloaded: {texts:.3} ms");
}
