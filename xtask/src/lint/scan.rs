//! Rust source without what is no code: comments, and the insides of strings and characters.
//!
//! Lines stay where they are, so that a place in the result is the same line in the file.

/// The text with comments and the contents of literals blanked out.
pub(super) fn code_of(text: &str) -> String {
    let mut scanner =
        Scanner { rest: text.chars().collect(), at: 0, code: String::with_capacity(text.len()) };
    while scanner.at < scanner.rest.len() {
        scanner.step();
    }
    scanner.code
}

/// The line of a byte offset, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}

/// The length of the bracketed text that starts at the beginning of `text`, brackets included.
pub(super) fn bracketed(text: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, letter) in text.char_indices() {
        if letter == open {
            depth += 1;
        } else if letter == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(offset + close.len_utf8());
            }
        }
    }
    None
}

struct Scanner {
    rest: Vec<char>,
    at: usize,
    code: String,
}

impl Scanner {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.rest.get(self.at + ahead).copied()
    }

    fn starts(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(ahead, letter)| self.peek(ahead) == Some(letter))
    }

    /// Takes one character over as code.
    fn keep(&mut self) {
        if let Some(letter) = self.peek(0) {
            self.code.push(letter);
            self.at += 1;
        }
    }

    /// Takes `count` characters as no code; line ends stay.
    fn blank(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(letter) = self.peek(0) {
                self.code.push(if letter == '\n' { '\n' } else { ' ' });
                self.at += 1;
            }
        }
    }

    fn step(&mut self) {
        if self.starts("//") {
            while self.peek(0).is_some_and(|letter| letter != '\n') {
                self.blank(1);
            }
        } else if self.starts("/*") {
            self.block_comment();
        } else if self.starts("\"") {
            self.string();
        } else if let Some(hashes) = self.raw_string_opens() {
            self.raw_string(hashes);
        } else if self.starts("'") {
            self.character_or_lifetime();
        } else {
            self.keep();
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        while self.peek(0).is_some() {
            if self.starts("/*") {
                depth += 1;
                self.blank(2);
            } else if self.starts("*/") {
                depth -= 1;
                self.blank(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.blank(1);
            }
        }
    }

    fn string(&mut self) {
        self.keep();
        while let Some(letter) = self.peek(0) {
            match letter {
                '"' => return self.keep(),
                '\\' => self.blank(2),
                _ => self.blank(1),
            }
        }
    }

    /// The number of `#` of a raw string that begins here: `r"`, `br##"`, `cr#"`.
    fn raw_string_opens(&self) -> Option<usize> {
        let in_word = self.code.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
        let prefixed = self.code.ends_with(['b', 'c']);
        if !self.starts("r") || (in_word && !prefixed) {
            return None;
        }
        let hashes = self.rest[self.at + 1..].iter().take_while(|&&letter| letter == '#').count();
        (self.peek(1 + hashes) == Some('"')).then_some(hashes)
    }

    fn raw_string(&mut self, hashes: usize) {
        let close: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        for _ in 0..hashes + 2 {
            self.keep();
        }
        while self.peek(0).is_some() && !self.starts(&close) {
            self.blank(1);
        }
        for _ in 0..=hashes {
            self.keep();
        }
    }

    fn character_or_lifetime(&mut self) {
        self.keep();
        if self.peek(0) == Some('\\') {
            self.blank(2);
            while self.peek(0).is_some_and(|letter| letter != '\'') {
                self.blank(1);
            }
            self.keep();
        } else if self.peek(1) == Some('\'') {
            self.blank(1);
            self.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        let cases = [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y", 1)"#, r#"f("    ", 1)"#),
            ("g(r#\"a\"b\"#, 2)", "g(r#\"   \"#, 2)"),
            ("h(br\"//\", var\"\")", "h(br\"  \", var\"\")"),
            ("'\"' 'a '\\'' x", "' ' 'a '  ' x"),
            ("fn f<'a>(x: &'a str) // '", "fn f<'a>(x: &'a str)     "),
        ];
        for (text, code) in cases {
            assert_eq!(code_of(text), code, "{text}");
        }
    }

    #[test]
    fn brackets_close_where_they_opened() {
        assert_eq!(bracketed("[a[b]c]d", '[', ']'), Some(7));
        assert_eq!(bracketed("[a", '[', ']'), None);
    }

    #[test]
    fn what_is_cut_short_ends() {
        for text in ["\"a\\", "r##\"a\"#", "/* /*", "'\\", "'"] {
            assert_eq!(code_of(text).chars().count(), text.chars().count(), "{text}");
        }
    }
}
