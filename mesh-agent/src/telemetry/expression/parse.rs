//! From text to a tree, by descent through the ranks of CEL's operators.

use regex::RegexBuilder;

use super::{Attribute, Comparison, ExpressionError, MAX_BYTES, Node, Test, Value};
use crate::resource::value::GoDuration;

/// How deep brackets and signs may stand in each other.
const MAX_DEPTH: usize = 32;
/// Size of a compiled regular expression, in bytes.
const MAX_REGEX_BYTES: usize = 256 * 1024;

type Parsed<T> = Result<T, ExpressionError>;

pub(super) fn parse(text: &str) -> Parsed<Node> {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
    };
    if text.len() > MAX_BYTES {
        return Err(parser.error(format!("is longer than {MAX_BYTES} bytes")));
    }
    let node = parser.choice()?;
    match parser.rest() {
        "" => Ok(node),
        _ => Err(parser.error("an operator is expected".to_owned())),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// What is left, without the space before it.
    fn rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let rest = rest.trim_start();
        self.at = self.text.len() - rest.len();
        rest
    }

    fn error(&self, reason: String) -> ExpressionError {
        let at = self.text[..self.at.min(self.text.len())].chars().count() + 1;
        ExpressionError::Malformed { at, reason }
    }

    /// Takes it, where it stands next.
    fn takes(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expects(&mut self, token: &str) -> Parsed<()> {
        if self.takes(token) {
            return Ok(());
        }
        Err(self.error(format!("{token:?} is expected")))
    }

    fn word(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let is_word = rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        is_word.then(|| {
            self.at += end;
            &rest[..end]
        })
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("stands in too many brackets".to_owned()));
        }
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn choice(&mut self) -> Parsed<Node> {
        let condition = self.either()?;
        if !self.takes("?") {
            return Ok(condition);
        }
        let then = self.deeper(Self::choice)?;
        self.expects(":")?;
        let otherwise = self.deeper(Self::choice)?;
        Ok(Node::Choose(Box::new([condition, then, otherwise])))
    }

    fn either(&mut self) -> Parsed<Node> {
        let mut node = self.both()?;
        while self.takes("||") {
            node = Node::Or(Box::new([node, self.both()?]));
        }
        Ok(node)
    }

    fn both(&mut self) -> Parsed<Node> {
        let mut node = self.relation()?;
        while self.takes("&&") {
            node = Node::And(Box::new([node, self.relation()?]));
        }
        Ok(node)
    }

    fn relation(&mut self) -> Parsed<Node> {
        let left = self.signed()?;
        for (token, comparison) in [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ] {
            if self.takes(token) {
                let right = self.signed()?;
                return Ok(Node::Compare(comparison, Box::new([left, right])));
            }
        }
        let before = self.at;
        if self.word() == Some("in") {
            return self.among(left);
        }
        self.at = before;
        Ok(left)
    }

    /// `x in [a, b]`, or `'name' in request.headers`.
    fn among(&mut self, left: Node) -> Parsed<Node> {
        if self.takes("[") {
            return Ok(Node::Among(Box::new(left), self.list("]")?));
        }
        let path = self.path()?;
        match (&left, path.as_str()) {
            (Node::Literal(Value::Text(name)), "request.headers" | "response.headers") => {
                attribute(&path, Some(name)).map(Node::Has)
            }
            _ => Err(ExpressionError::Unknown(format!("in {path}"))),
        }
    }

    fn list(&mut self, end: &str) -> Parsed<Vec<Node>> {
        let mut list = Vec::new();
        while !self.takes(end) {
            if !list.is_empty() {
                self.expects(",")?;
            }
            list.push(self.deeper(Self::choice)?);
        }
        Ok(list)
    }

    fn signed(&mut self) -> Parsed<Node> {
        if self.takes("!") {
            return Ok(Node::Not(Box::new(self.deeper(Self::signed)?)));
        }
        if self.takes("-") {
            return Ok(Node::Minus(Box::new(self.deeper(Self::signed)?)));
        }
        self.member()
    }

    fn member(&mut self) -> Parsed<Node> {
        let mut node = self.primary()?;
        while self.takes(".") {
            let Some(name) = self.word() else {
                return Err(self.error("the name of a function is expected".to_owned()));
            };
            node = self.method(node, name)?;
        }
        Ok(node)
    }

    fn method(&mut self, of: Node, name: &str) -> Parsed<Node> {
        let test = match name {
            "contains" => Test::Contains,
            "startsWith" => Test::StartsWith,
            "endsWith" => Test::EndsWith,
            "matches" => {
                self.expects("(")?;
                let pattern = self.literal_text()?;
                self.expects(")")?;
                let built = RegexBuilder::new(&pattern)
                    .size_limit(MAX_REGEX_BYTES)
                    .build();
                let regex = built.map_err(|error| self.error(error.to_string()))?;
                return Ok(Node::Matches(Box::new(of), regex));
            }
            _ => return Err(ExpressionError::Unknown(format!("{name}()"))),
        };
        self.expects("(")?;
        let argument = self.deeper(Self::choice)?;
        self.expects(")")?;
        Ok(Node::Test(test, Box::new([of, argument])))
    }

    fn primary(&mut self) -> Parsed<Node> {
        if self.takes("(") {
            let node = self.deeper(Self::choice)?;
            self.expects(")")?;
            return Ok(node);
        }
        let rest = self.rest();
        if rest.starts_with(['"', '\'']) || rest.starts_with("r\"") || rest.starts_with("r'") {
            let text = self.literal_text()?;
            return Ok(Node::Literal(Value::Text(text.into())));
        }
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            return self.number();
        }
        let before = self.at;
        match self.word() {
            Some("true") => return Ok(Node::Literal(Value::Bool(true))),
            Some("false") => return Ok(Node::Literal(Value::Bool(false))),
            Some(name @ ("has" | "string" | "duration")) if self.takes("(") => {
                return self.function(name);
            }
            Some(name) if self.rest().starts_with('(') => {
                return Err(ExpressionError::Unknown(format!("{name}()")));
            }
            Some(_) => {}
            None => return Err(self.error("a value is expected".to_owned())),
        }
        self.at = before;
        self.attribute().map(Node::Attribute)
    }

    fn function(&mut self, name: &str) -> Parsed<Node> {
        let node = match name {
            "has" => Node::Has(self.attribute()?),
            "string" => Node::String(Box::new(self.deeper(Self::choice)?)),
            _ => {
                let text = self.literal_text()?;
                let duration = GoDuration::parse(&text)
                    .map_err(|_| self.error(format!("{text:?} is no duration")))?;
                Node::Literal(Value::Duration(duration.0))
            }
        };
        self.expects(")")?;
        Ok(node)
    }

    /// `a.b.c`, but for a last name that is called.
    fn path(&mut self) -> Parsed<String> {
        let Some(first) = self.word() else {
            return Err(self.error("a name is expected".to_owned()));
        };
        let mut path = first.to_owned();
        loop {
            let before = self.at;
            if !self.takes(".") {
                return Ok(path);
            }
            match self.word() {
                Some(name) if !self.rest().starts_with('(') => {
                    path.push('.');
                    path.push_str(name);
                }
                _ => {
                    self.at = before;
                    return Ok(path);
                }
            }
        }
    }

    fn attribute(&mut self) -> Parsed<Attribute> {
        let path = self.path()?;
        let key = if self.takes("[") {
            let key = self.literal_text()?;
            self.expects("]")?;
            Some(key)
        } else {
            None
        };
        attribute(&path, key.as_deref())
    }

    fn number(&mut self) -> Parsed<Node> {
        let rest = self.rest();
        let is_part = |c: char| c.is_ascii_digit() || c == '.';
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let digits = &rest[..end];
        let value = match digits.parse() {
            Ok(number) => Value::Int(number),
            Err(_) => match digits.parse() {
                Ok(number) => Value::Double(number),
                Err(_) => return Err(self.error(format!("{digits:?} is no number"))),
            },
        };
        self.at += end;
        Ok(Node::Literal(value))
    }

    fn literal_text(&mut self) -> Parsed<String> {
        let is_raw = self.takes("r\"") || self.takes("r'");
        if is_raw {
            self.at -= 1;
        }
        let rest = self.rest();
        let mut characters = rest.char_indices();
        let quote = match characters.next() {
            Some((_, quote @ ('"' | '\''))) => quote,
            _ => return Err(self.error("a text in quotes is expected".to_owned())),
        };
        let mut text = String::new();
        while let Some((at, character)) = characters.next() {
            match character {
                _ if character == quote => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\\' if !is_raw => match characters.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, same @ ('\\' | '"' | '\''))) => text.push(same),
                    _ => return Err(self.error("\\ begins no character that is known".to_owned())),
                },
                _ => text.push(character),
            }
        }
        Err(self.error("the text has no end".to_owned()))
    }
}

fn attribute(path: &str, key: Option<&str>) -> Parsed<Attribute> {
    Attribute::named(path, key).ok_or_else(|| {
        ExpressionError::Unknown(match key {
            Some(key) => format!("{path}[{key:?}]"),
            None => path.to_owned(),
        })
    })
}
