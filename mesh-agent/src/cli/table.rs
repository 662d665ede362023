//! Tables for people: columns aligned with spaces, as kubectl and istioctl print them.

/// Blanks between two columns.
const GAP: usize = 2;

/// Rows of text under a header.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column names.
    pub fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|&name| name.to_owned()).collect()],
        }
    }

    /// Adds a row; an empty cell is shown as `-`, so that columns can be counted.
    pub fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        let cells = cells.into_iter().map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                // What the cells say comes from configuration: it must not move the cursor.
                cell.replace(|c: char| c.is_control(), " ")
            }
        });
        self.rows.push(cells.collect());
    }

    /// The text, each line ended by a newline and without blanks at its end.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, wide) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', wide - cell.chars().count() + GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A count of bytes with a binary unit: `512B`, `5.4MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count}B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1}{unit}")
}

/// A duration in microseconds: `421us`, `1.2ms`, `3.0s`; `-` for none.
pub fn micros(value: u32) -> String {
    match value {
        0 => "-".to_owned(),
        1..1000 => format!("{value}us"),
        1000..1_000_000 => format!("{:.1}ms", f64::from(value) / 1e3),
        _ => format!("{:.1}s", f64::from(value) / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_not_padded() {
        let mut table = Table::new(&["NAME", "A"]);
        table.row(["longer".to_owned(), "1".to_owned()]);
        table.row([String::new(), "x\ny\u{1b}[2J".to_owned()]);
        assert_eq!(table.render(), "NAME    A\nlonger  1\n-       x y [2J\n");
    }

    #[test]
    fn units() {
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1024), "1.0KiB");
        assert_eq!(bytes(u64::MAX), "16384.0PiB");
        assert_eq!(micros(0), "-");
        assert_eq!(micros(1_500), "1.5ms");
        assert_eq!(micros(2_000_000), "2.0s");
    }
}
