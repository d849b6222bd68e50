//! Plots as SVG: no script, no font, no colour that does not follow the page.

use std::fmt::Write as _;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
/// Left, top, right, bottom.
const MARGIN: [f64; 4] = [64.0, 14.0, 16.0, 44.0];

/// A curve: its name, and its points from left to right.
pub struct Curve {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// An axis.
#[derive(Clone, Copy)]
pub struct Axis<'a> {
    pub name: &'a str,
    pub is_logarithmic: bool,
}

/// Curves over common axes, or nothing where there are fewer than two points.
pub fn lines(curves: &[Curve], x: Axis<'_>, y: Axis<'_>) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    if points().count() < 2 {
        return String::new();
    }
    let xs =
        Scale::new(points().map(|point| point.0), x.is_logarithmic, (MARGIN[0], WIDTH - MARGIN[2]));
    let ys = Scale::new(
        points().map(|point| point.1),
        y.is_logarithmic,
        (HEIGHT - MARGIN[3], MARGIN[1]),
    );
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} by {}\">\n",
        escape(y.name),
        escape(x.name)
    );
    // Writing to a string cannot fail.
    for value in xs.ticks() {
        let at = xs.place(value);
        let (top, bottom) = (MARGIN[1], HEIGHT - MARGIN[3]);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>\
             <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 16.0,
            number(value)
        );
    }
    for value in ys.ticks() {
        let at = ys.place(value);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            MARGIN[0],
            WIDTH - MARGIN[2],
            MARGIN[0] - 6.0,
            at + 4.0,
            number(value)
        );
    }
    let middle = (MARGIN[1] + HEIGHT - MARGIN[3]) / 2.0;
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
         <text transform=\"translate(14 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        (MARGIN[0] + WIDTH - MARGIN[2]) / 2.0,
        HEIGHT - 8.0,
        escape(x.name),
        escape(y.name)
    );
    for (index, curve) in curves.iter().enumerate() {
        let mut path = String::new();
        for (number, point) in curve.points.iter().enumerate() {
            let command = if number == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", xs.place(point.0), ys.place(point.1));
        }
        let _ = writeln!(svg, "<path class=\"curve c{}\" d=\"{path}\"/>", index % 6);
        // Points are drawn where they are measurements, not where they are the steps of a distribution.
        if curve.points.len() <= 16 {
            for point in &curve.points {
                let _ = writeln!(
                    svg,
                    "<circle class=\"c{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{}: {} {}, {} {}</title></circle>",
                    index % 6,
                    xs.place(point.0),
                    ys.place(point.1),
                    escape(&curve.name),
                    number(point.0),
                    escape(x.name),
                    number(point.1),
                    escape(y.name)
                );
            }
        }
    }
    svg.push_str("</svg>\n");
    if curves.len() > 1 {
        svg.push_str("<p class=\"legend\">");
        for (index, curve) in curves.iter().enumerate() {
            let _ = write!(
                svg,
                "<span class=\"c{}\">&#9632;</span> {} ",
                index % 6,
                escape(&curve.name)
            );
        }
        svg.push_str("</p>\n");
    }
    svg
}

/// One bar cut into named parts, with a legend.
pub fn bar(parts: &[(String, f64)]) -> String {
    let total: f64 = parts.iter().map(|(_, value)| value).sum();
    if total <= 0.0 {
        return String::new();
    }
    let mut svg = format!("<svg class=\"bar\" viewBox=\"0 0 {WIDTH} 22\" role=\"img\">\n");
    let mut left = 0.0;
    let mut legend = String::from("<p class=\"legend\">");
    for (index, (name, value)) in parts.iter().enumerate() {
        let width = WIDTH * value / total;
        let share = 100.0 * value / total;
        let _ = writeln!(
            svg,
            "<rect class=\"c{}\" x=\"{left:.1}\" y=\"0\" width=\"{width:.1}\" height=\"22\"><title>{} {share:.1} %</title></rect>",
            index % 6,
            escape(name)
        );
        let _ = write!(
            legend,
            "<span class=\"c{}\">&#9632;</span> {} {share:.1} % ",
            index % 6,
            escape(name)
        );
        left += width;
    }
    svg + "</svg>\n" + &legend + "</p>\n"
}

/// Values to places on the page.
struct Scale {
    is_logarithmic: bool,
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, is_logarithmic: bool, to: (f64, f64)) -> Self {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (least, most) = (least.min(value), most.max(value));
        }
        if is_logarithmic {
            let least = 10_f64.powf(least.max(1e-9).log10().floor());
            let most = 10_f64.powf(most.max(1e-9).log10().ceil()).max(least * 10.0);
            return Scale { is_logarithmic, from: (least, most), to };
        }
        // From zero: a curve must not look steeper than it is.
        let most = if most > 0.0 { most } else { 1.0 };
        let step = step(most);
        Scale { is_logarithmic, from: (0.0, (most / step).ceil() * step), to }
    }

    fn place(&self, value: f64) -> f64 {
        let (least, most) = self.from;
        let share = match self.is_logarithmic {
            true => (value.max(least) / least).log10() / (most / least).log10(),
            false => (value - least) / (most - least),
        };
        self.to.0 + share * (self.to.1 - self.to.0)
    }

    fn ticks(&self) -> Vec<f64> {
        let (least, most) = self.from;
        if self.is_logarithmic {
            let decades = (most / least).log10().round() as i32;
            return (0..=decades).map(|power| least * 10_f64.powi(power)).collect();
        }
        let step = step(most);
        (0..=(most / step).round() as i32).map(|count| f64::from(count) * step).collect()
    }
}

/// About a fifth of `most`, as 1, 2 or 5 times a power of ten.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 5.0).log10().floor());
    let ratio = most / 5.0 / power;
    power
        * if ratio > 5.0 {
            10.0
        } else if ratio > 2.0 {
            5.0
        } else if ratio > 1.0 {
            2.0
        } else {
            1.0
        }
}

/// A number as short as it can be read.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 1e6 => format!("{}M", trimmed(value / 1e6, 1)),
        _ if size >= 1e4 => format!("{}k", trimmed(value / 1e3, 1)),
        _ if size >= 100.0 || value == 0.0 => trimmed(value, 0),
        _ if size >= 1.0 => trimmed(value, 2),
        _ => trimmed(value, 4),
    }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_where_they_belong() {
        let linear = Scale::new([3.0, 42.0].into_iter(), false, (0.0, 100.0));
        assert_eq!(linear.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(linear.place(25.0), 50.0);
        let logarithmic = Scale::new([20.0, 900.0].into_iter(), true, (0.0, 200.0));
        assert_eq!(logarithmic.ticks(), [10.0, 100.0, 1000.0]);
        assert!((logarithmic.place(100.0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.05, 1.5, 250.0, 12_000.0, 1e6].map(number);
        assert_eq!(shown, ["0", "0.05", "1.5", "250", "12k", "1M"]);
    }

    #[test]
    fn names_cannot_break_the_page() {
        let axis = Axis { name: "<x>", is_logarithmic: false };
        let curve = Curve { name: "\"a\" & b".into(), points: vec![(1.0, 2.0), (2.0, 3.0)] };
        let svg = lines(&[curve], axis, axis);
        assert!(
            !svg.contains("<x>") && svg.contains("&lt;x&gt;") && svg.contains("&amp; b"),
            "{svg}"
        );
        assert_eq!(lines(&[], axis, axis), "");
    }
}
