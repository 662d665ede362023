//! What was measured: samples of all rounds, their medians and ratios.

/// The variant without a mesh.
pub const DIRECT: &str = "direct";
/// How the variants of Envoy begin.
const ENVOY: &str = "envoy";

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
}

impl Metric {
    pub const fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit }
    }
}

/// One metric of one variant.
#[derive(Debug)]
pub struct Row {
    pub scenario: &'static str,
    pub variant: &'static str,
    pub metric: Metric,
    samples: Vec<f64>,
}

impl Row {
    /// Median of all rounds.
    pub fn value(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        }
    }

    /// Smallest and largest of all rounds.
    pub fn range(&self) -> (f64, f64) {
        self.samples
            .iter()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), sample| {
                (low.min(*sample), high.max(*sample))
            })
    }
}

/// All of them, in the order in which they were first measured.
#[derive(Debug, Default)]
pub struct Figures {
    rows: Vec<Row>,
    notes: Vec<String>,
    failures: usize,
}

impl Figures {
    /// Adds what a round has shown.
    pub fn add(
        &mut self,
        scenario: &'static str,
        variant: &'static str,
        metric: Metric,
        sample: f64,
    ) {
        let row = self
            .rows
            .iter_mut()
            .find(|row| row.scenario == scenario && row.variant == variant && row.metric == metric);
        match row {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row {
                scenario,
                variant,
                metric,
                samples: vec![sample],
            }),
        }
    }

    /// Something that a reader of the figures has to know.
    pub fn note(&mut self, text: String) {
        println!("  note: {text}");
        self.notes.push(text);
    }

    /// A measurement that did not succeed.
    pub fn failure(&mut self, text: String) {
        self.failures += 1;
        self.note(text);
    }

    /// All rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// All notes.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How many measurements did not succeed.
    pub fn failures(&self) -> usize {
        self.failures
    }

    /// A row's value in terms of no mesh's.
    pub fn ratio_to_direct(&self, row: &Row) -> Option<f64> {
        self.ratio(row, |variant| variant == DIRECT)
    }

    /// A row's value in terms of Envoy's.
    pub fn ratio_to_envoy(&self, row: &Row) -> Option<f64> {
        self.ratio(row, |variant| variant.starts_with(ENVOY))
    }

    fn ratio(&self, row: &Row, is_base: impl Fn(&str) -> bool) -> Option<f64> {
        let base = self.rows.iter().find(|other| {
            other.scenario == row.scenario && other.metric == row.metric && is_base(other.variant)
        })?;
        let ratio = row.value() / base.value();
        ratio.is_finite().then_some(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRIC: Metric = Metric::new("requests", "req/s");

    #[test]
    fn medians_and_ratios_of_the_same_scenario_and_metric() {
        let mut figures = Figures::default();
        for (variant, samples) in [
            (DIRECT, &[100.0, 300.0, 200.0][..]),
            ("undermesh", &[100.0, 50.0]),
            ("envoy-tcp", &[25.0]),
        ] {
            for sample in samples {
                figures.add("one", variant, METRIC, *sample);
            }
        }
        figures.add("two", DIRECT, METRIC, 7.0);
        let ours = &figures.rows()[1];
        assert_eq!(ours.value(), 75.0);
        assert_eq!(ours.range(), (50.0, 100.0));
        assert_eq!(figures.ratio_to_direct(ours), Some(0.375));
        assert_eq!(figures.ratio_to_envoy(ours), Some(3.0));
        assert_eq!(figures.ratio_to_envoy(&figures.rows()[3]), None);
    }
}
