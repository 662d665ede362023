//! Commands in values of header fields, `%REQ(x-user?user-agent):10%`: those of
//! Envoy's that say something of the request.

/// What a value consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// `REQ(name?other):length`; pseudo fields begin with a colon.
    Request {
        /// Name in lower case.
        name: String,
        /// Another field, for requests without the first.
        or: Option<String>,
        /// Longest value, in characters.
        limit: Option<usize>,
    },
    /// `DOWNSTREAM_REMOTE_ADDRESS` and its parts.
    Client(Part),
    /// `DOWNSTREAM_LOCAL_ADDRESS` and its parts: what the application asked for.
    Destination(Part),
    /// `PROTOCOL`.
    Protocol,
    /// `ROUTE_NAME`.
    RouteName,
    /// `START_TIME(format)`.
    StartTime(Vec<TimePiece>),
}

/// Of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Address and port.
    All,
    /// Without the port.
    Address,
    /// The port alone.
    Port,
}

/// Of a time, in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimePiece {
    /// As it stands.
    Text(String),
    /// `%Y %m %d %H %M %S`.
    Part(char),
    /// `%s`: seconds since 1970.
    Epoch,
    /// `%3f` and the like: digits of the fraction.
    Fraction(u32),
}

/// Why a value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// No command at all.
    #[error("has a % that begins no command; a percent sign is written %%")]
    Malformed,
    /// A command of Envoy's, perhaps, but none that is understood.
    #[error("%{0}% is not applied by this version: the header is left alone")]
    Unknown(String),
}

/// A piece of a value before anybody knows which commands there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// As it stands.
    Text(&'a str),
    /// What is between two percent signs.
    Command(&'a str),
}

/// A command, `NAME(argument):limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is in brackets.
    pub argument: Option<&'a str>,
    /// Longest value, in characters.
    pub limit: Option<usize>,
}

/// Splits a value into text and commands.
///
/// # Errors
/// Where a percent sign begins no command.
pub fn tokens(value: &str) -> Result<Vec<Token<'_>>, FormatError> {
    let mut tokens = Vec::new();
    let mut rest = value;
    while let Some((text, after)) = rest.split_once('%') {
        tokens.push(Token::Text(text));
        if let Some(after) = after.strip_prefix('%') {
            tokens.push(Token::Text("%"));
            rest = after;
            continue;
        }
        let end = end_of_command(after).ok_or(FormatError::Malformed)?;
        tokens.push(Token::Command(&after[..end]));
        rest = &after[end + 1..];
    }
    tokens.push(Token::Text(rest));
    tokens.retain(|token| *token != Token::Text(""));
    Ok(tokens)
}

/// Takes a value apart.
///
/// # Errors
/// The first command that is none, or is not understood.
pub fn parse(value: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    for token in tokens(value)? {
        match token {
            Token::Text(text) => push(&mut pieces, text),
            Token::Command(text) => pieces.push(command(text)?),
        }
    }
    Ok(pieces)
}

fn push(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

/// The percent sign that ends a command: those between brackets belong to its argument.
fn end_of_command(text: &str) -> Option<usize> {
    let mut depth = 0u32;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '%' if depth == 0 => return Some(at).filter(|at| *at > 0),
            _ => {}
        }
    }
    None
}

impl<'a> Command<'a> {
    /// Takes a command apart.
    ///
    /// # Errors
    /// Where it is none.
    pub fn parse(text: &'a str) -> Result<Self, FormatError> {
        let (name, argument, limit) = match text.split_once('(') {
            None => (text, None, ""),
            Some((name, rest)) => {
                let (argument, limit) = rest.rsplit_once(')').ok_or(FormatError::Malformed)?;
                (name, Some(argument), limit)
            }
        };
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'_' | b'0'..=b'9'))
        {
            return Err(FormatError::Malformed);
        }
        let limit = match limit.strip_prefix(':') {
            None if limit.is_empty() => None,
            None => return Err(FormatError::Malformed),
            Some(digits) => Some(digits.parse().map_err(|_| FormatError::Malformed)?),
        };
        Ok(Self {
            name,
            argument,
            limit,
        })
    }
}

/// The argument of `REQ` and `RESP`: a field, and another for where it is not there.
///
/// # Errors
/// Where it names no field.
pub fn fields(argument: &str) -> Result<(String, Option<String>), FormatError> {
    let (name, or) = match argument.split_once('?') {
        Some((name, or)) => (name, Some(or.to_ascii_lowercase())),
        None => (argument, None),
    };
    if name.is_empty() {
        return Err(FormatError::Malformed);
    }
    Ok((name.to_ascii_lowercase(), or))
}

/// A format of times; `None` where it holds what is not understood.
pub fn start_time(argument: Option<&str>) -> Option<Vec<TimePiece>> {
    time(argument.unwrap_or("%Y-%m-%dT%H:%M:%E3SZ"))
}

fn command(text: &str) -> Result<Piece, FormatError> {
    let unknown = || FormatError::Unknown(text.to_owned());
    let Command {
        name,
        argument,
        limit,
    } = Command::parse(text)?;
    Ok(match (name, argument) {
        ("REQ", Some(argument)) => {
            let (name, or) = fields(argument)?;
            Piece::Request { name, or, limit }
        }
        ("START_TIME", argument) => Piece::StartTime(start_time(argument).ok_or_else(unknown)?),
        ("PROTOCOL", None) => Piece::Protocol,
        ("ROUTE_NAME", None) => Piece::RouteName,
        ("DOWNSTREAM_REMOTE_ADDRESS", None) => Piece::Client(Part::All),
        ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None) => Piece::Client(Part::Address),
        ("DOWNSTREAM_REMOTE_PORT", None) => Piece::Client(Part::Port),
        ("DOWNSTREAM_LOCAL_ADDRESS", None) => Piece::Destination(Part::All),
        ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", None) => Piece::Destination(Part::Address),
        ("DOWNSTREAM_LOCAL_PORT", None) => Piece::Destination(Part::Port),
        _ => return Err(unknown()),
    })
}

/// A format of times; `None` where it holds what is not understood.
fn time(format: &str) -> Option<Vec<TimePiece>> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let more: &[TimePiece] = match characters.next()? {
            '%' => &[TimePiece::Text("%".into())],
            's' => &[TimePiece::Epoch],
            part @ ('Y' | 'm' | 'd' | 'H' | 'M' | 'S') => &[TimePiece::Part(part)],
            digits @ '1'..='9' if characters.next() == Some('f') => {
                &[TimePiece::Fraction(digits.to_digit(10)?)]
            }
            'f' => &[TimePiece::Fraction(9)],
            'F' => &time("%Y-%m-%d")?,
            'T' => &time("%H:%M:%S")?,
            // Seconds with so many digits of their fraction.
            'E' => {
                let digits = characters
                    .next()?
                    .to_digit(10)
                    .filter(|digits| *digits > 0)?;
                if characters.next() != Some('S') {
                    return None;
                }
                &[
                    TimePiece::Part('S'),
                    TimePiece::Text(".".into()),
                    TimePiece::Fraction(digits.min(9)),
                ]
            }
            _ => return None,
        };
        if !text.is_empty() {
            pieces.push(TimePiece::Text(std::mem::take(&mut text)));
        }
        pieces.extend_from_slice(more);
    }
    if !text.is_empty() {
        pieces.push(TimePiece::Text(text));
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_text_and_commands() {
        let text = |text: &str| Piece::Text(text.to_owned());
        assert_eq!(parse("100%% sure"), Ok(vec![text("100% sure")]));
        assert_eq!(
            parse("a%PROTOCOL%b%REQ(X-User?:Authority):12%"),
            Ok(vec![
                text("a"),
                Piece::Protocol,
                text("b"),
                Piece::Request {
                    name: "x-user".into(),
                    or: Some(":authority".into()),
                    limit: Some(12)
                }
            ])
        );
        assert_eq!(
            parse("%START_TIME(%s.%3f)%"),
            Ok(vec![Piece::StartTime(vec![
                TimePiece::Epoch,
                TimePiece::Text(".".into()),
                TimePiece::Fraction(3)
            ])])
        );
    }

    #[test]
    fn what_is_no_command_is_told_from_what_is_not_understood() {
        for value in ["50% off", "%", "%REQ(x", "%REQ()%", "%REQ(x):y%", "a%b c%d"] {
            assert_eq!(parse(value), Err(FormatError::Malformed), "{value}");
        }
        for value in ["UPSTREAM_HOST", "START_TIME(%A)", "REQ", "DURATION"] {
            let unknown = FormatError::Unknown(value.to_owned());
            assert_eq!(parse(&format!("%{value}%")), Err(unknown));
        }
    }

    proptest! {
        #[test]
        fn any_value_is_taken_apart_or_refused(value in "[%A-Z_():?a-z0-9 ]{0,40}") {
            let _ = parse(&value);
        }

        #[test]
        fn text_stays(value in "[ -~]{0,40}") {
            let parsed = parse(&value.replace('%', "%%")).expect("no command");
            let whole: Vec<Piece> = Some(Piece::Text(value.clone())).filter(|_| !value.is_empty()).into_iter().collect();
            prop_assert_eq!(parsed, whole);
        }
    }
}
