//! What was measured, for people and for programs.

use serde_json::json;

use super::figures::{Figures, Row};

/// Prints a table for each scenario.
pub fn table(figures: &Figures) {
    print!("{}", text(figures));
}

/// A JSON array with one object for each row, each on a line of its own.
pub fn json(figures: &Figures) -> String {
    let objects: Vec<_> = figures
        .rows()
        .iter()
        .map(|row| {
            let (low, high) = row.range();
            let object = json!({
                "scenario": row.scenario,
                "variant": row.variant,
                "metric": row.metric.name,
                "unit": row.metric.unit,
                "value": row.value(),
                "low": low,
                "high": high,
                "ratio_to_direct": figures.ratio_to_direct(row),
                "ratio_to_envoy": figures.ratio_to_envoy(row),
            });
            object.to_string()
        })
        .collect();
    format!("[\n{}\n]\n", objects.join(",\n"))
}

fn text(figures: &Figures) -> String {
    let mut text = String::new();
    let mut rows: Vec<&Row> = figures.rows().iter().collect();
    // Variants of one metric stand beside one another, in the order of their first measurement.
    let position = |row: &Row| {
        figures
            .rows()
            .iter()
            .position(|other| other.scenario == row.scenario && other.metric == row.metric)
    };
    rows.sort_by_key(|row| position(row));
    let (mut scenario, mut metric) = ("", "");
    for row in rows {
        if row.scenario != scenario {
            scenario = row.scenario;
            metric = "";
            text += &format!(
                "\n{scenario:<50} {:>16} {:>23} {:>9} {:>9}\n",
                "median", "lowest - highest", "x direct", "x Envoy"
            );
        }
        if row.metric.name != metric {
            metric = row.metric.name;
            text += &format!("  {metric}\n");
        }
        let (low, high) = row.range();
        text += &format!(
            "    {:<46} {:>16} {:>23} {:>9} {:>9}\n",
            row.variant,
            format!("{} {}", number(row.value()), row.metric.unit),
            format!("{} - {}", number(low), number(high)),
            ratio(figures.ratio_to_direct(row)),
            ratio(figures.ratio_to_envoy(row)),
        );
    }
    if !figures.notes().is_empty() {
        text += "\nnotes\n";
    }
    for note in figures.notes() {
        text += &format!("  {note}\n");
    }
    text
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

/// Three significant digits or all before the point, with commas.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let plain = format!("{value:.digits$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let (sign, whole) = match whole.strip_prefix('-') {
        Some(whole) => ("-", whole),
        None => ("", whole),
    };
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::super::figures::{DIRECT, Metric};
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let shown = [0.5, 12.34, 123.4, 12345.6, -1234567.0].map(number);
        assert_eq!(shown, ["0.50", "12.3", "123", "12,346", "-1,234,567"]);
    }

    #[test]
    fn every_row_is_an_object_with_its_ratios() {
        let mut figures = Figures::default();
        let metric = Metric::new("requests, 16 connections", "req/s");
        figures.add("same-node", DIRECT, metric, 1000.0);
        figures.add("same-node", "undermesh", metric, 500.0);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&json(&figures)).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1]["variant"], "undermesh");
        assert_eq!(rows[1]["ratio_to_direct"], 0.5);
        assert!(rows[1]["ratio_to_envoy"].is_null());
        assert!(text(&figures).contains("undermesh"));
    }
}
