//! Draws `docs/admissions.svg`: what each algorithm lets into a rolling window under the same steady pressure over a window's edge.
//!
//! `cargo run --example admission_plot > docs/admissions.svg`; a test holds the file to what this draws.

use std::collections::VecDeque;

use plotters::prelude::*;
use weir::limit::{Algorithm, Limit, Micros, Outcome, SECOND, State};

const WINDOW: Micros = 10 * SECOND;
const REQUESTS: u64 = 100;
/// A call every 20 ms from the sixth second on: 50 a second against a limit of 10 a second.
const INTERVAL: Micros = SECOND / 50;
const STARTS: Micros = 6 * SECOND;
const ENDS: Micros = 36 * SECOND;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    print!("{}", draw()?);
    Ok(())
}

/// The admissions of the last window, at every call.
fn rolling(algorithm: Algorithm) -> Vec<(f64, f64)> {
    // Half the default burst, as one would choose where edges matter.
    let burst = algorithm.is_bucket().then_some(REQUESTS / 2);
    let limit = Limit::new(algorithm, REQUESTS, WINDOW, burst).expect("a plain limit");
    let mut state: Option<State> = None;
    let mut admitted = VecDeque::new();
    let mut line = vec![(0.0, 0.0)];
    let mut now = STARTS;
    while now <= ENDS {
        let step = limit.step(state.as_ref(), now, 1, None);
        if let Outcome::Allowed { delay, .. } = step.outcome {
            state = step.next;
            admitted.push_back(now + delay);
        }
        // A leaky admission counts from its turn on, when it really goes ahead.
        let inside = admitted.iter().filter(|&&at| at <= now && at + WINDOW > now).count();
        line.push((now as f64 / SECOND as f64, inside as f64));
        now += INTERVAL;
    }
    line
}

fn draw() -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (860, 420)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Admitted in the last 10 s: 50 calls a second against 100 per 10 s", ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(38)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..36.0, 0.0..220.0)?;
        chart.configure_mesh().x_desc("seconds (windows begin at 0, 10, 20, 30)").y_desc("admitted").draw()?;
        let lines = [
            (Algorithm::FixedWindow, RGBColor(200, 40, 40)),
            (Algorithm::SlidingLog, RGBColor(30, 90, 200)),
            (Algorithm::SlidingCounter, RGBColor(20, 140, 70)),
            (Algorithm::TokenBucket, RGBColor(220, 140, 0)),
            (Algorithm::LeakyBucket, RGBColor(130, 60, 160)),
        ];
        for (algorithm, color) in lines {
            let name = if algorithm.is_bucket() { format!("{} (burst 50)", algorithm.name()) } else { algorithm.name().to_owned() };
            chart
                .draw_series(LineSeries::new(rolling(algorithm), color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.9))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_plot_in_docs_is_this_one() {
        let drawn = super::draw().expect("draws");
        let kept = include_str!("../docs/admissions.svg");
        assert!(drawn == kept, "run: cargo run --example admission_plot > docs/admissions.svg");
    }
}
