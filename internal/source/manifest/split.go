package manifest

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf16"
)

// chunk is the text of one document and the 1-based line of the file it begins at.
type chunk struct {
	text  []byte
	first int
}

var bom = []byte("\xef\xbb\xbf")

// split cuts a file into documents at the lines that begin with the markers --- and ... of YAML
// 1.2.2 §9.1.2. What follows --- on its line belongs to the document. Chunks without content are
// dropped, and so are directives (lines that begin with % before a document).
func split(data []byte) []chunk {
	var out []chunk
	cur := chunk{first: 1}
	start, line, content := 0, 1, false
	flush := func(end int) {
		if content {
			cur.text = data[start:end]
			out = append(out, jsonStream(cur)...)
		}
		content = false
	}
	data = bytes.TrimPrefix(data, bom)
	for pos := 0; pos < len(data); line++ {
		end := pos + lineLen(data[pos:])
		l := bytes.TrimPrefix(data[pos:end], bom)
		switch {
		case marker(l, "---") && significant(l[3:]):
			flush(pos)
			start, cur.first, content = pos, line, true
		case marker(l, "---"), marker(l, "..."):
			flush(pos)
			start, cur.first = end, line+1
		case !content && (!significant(l) || l[0] == '%'):
			start, cur.first = end, line+1
		default:
			content = true
		}
		pos = end
	}
	flush(len(data))
	return out
}

// lineLen returns the length of the first line of b with its line feed.
func lineLen(b []byte) int {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return i + 1
	}
	return len(b)
}

// marker reports whether the line is a document marker, which ends with white space or its line.
func marker(line []byte, mark string) bool {
	if !bytes.HasPrefix(line, []byte(mark)) {
		return false
	}
	return len(line) == len(mark) || bytes.IndexByte([]byte(" \t\r\n"), line[len(mark)]) >= 0
}

// significant reports whether a line holds anything but white space and a comment.
func significant(line []byte) bool {
	line = bytes.TrimSpace(line)
	return len(line) > 0 && line[0] != '#'
}

// jsonStream cuts a chunk of JSON values that follow each other into one chunk each. What is not
// JSON is left to the YAML parser as it is.
func jsonStream(c chunk) []chunk {
	rest := bytes.TrimSpace(bytes.TrimPrefix(c.text, bom))
	if len(rest) == 0 || rest[0] != '{' {
		return []chunk{c}
	}
	var out []chunk
	for text, first := c.text, c.first; ; {
		blank := len(text) - len(bytes.TrimLeft(text, "\xef\xbb\xbf \t\r\n"))
		first += bytes.Count(text[:blank], []byte("\n"))
		text = text[blank:]
		if len(text) == 0 {
			return out
		}
		dec := json.NewDecoder(bytes.NewReader(text))
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return append(out, chunk{text, first})
		}
		end := int(dec.InputOffset())
		out = append(out, chunk{yamlEscapes(text[:end]), first})
		first += bytes.Count(text[:end], []byte("\n"))
		text = text[end:]
	}
}

// yamlEscapes rewrites the escapes that JSON has and the YAML parser has not: \/ and the pairs of
// \uXXXX surrogates become the character they stand for.
func yamlEscapes(text []byte) []byte {
	if bytes.IndexByte(text, '\\') < 0 {
		return text
	}
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 >= len(text) {
			out = append(out, text[i])
			continue
		}
		if high, ok := unicodeEscape(text[i:]); ok && utf16.IsSurrogate(high) {
			r, width := '\uFFFD', 6
			if low, ok := unicodeEscape(text[i+6:]); ok && utf16.DecodeRune(high, low) != '\uFFFD' {
				r, width = utf16.DecodeRune(high, low), 12
			}
			out = append(out, string(r)...)
			i += width - 1
			continue
		}
		if text[i+1] != '/' {
			out = append(out, '\\')
		}
		out = append(out, text[i+1])
		i++
	}
	return out
}

// unicodeEscape reads the \uXXXX that b begins with.
func unicodeEscape(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	v, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(v), err == nil
}
