package manifest

import (
	"bytes"
	"errors"
	"math"
	"regexp"
	"strconv"
	"strings"
)

var yamlPrefix = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// hints say in other words what the YAML parser's most frequent complaints mean.
var hints = map[string]string{
	"did not find expected key":                       "this does not continue the mapping above it, expected a key at the same indentation",
	"did not find expected '-' indicator":             "this does not continue the list above it, expected \"- \" at the same indentation",
	"found character that cannot start any token":     "found a character that no value begins with, expected spaces for indentation (not tabs) and quotes around such text",
	"mapping values are not allowed in this context":  "found a second \": \" in one value, expected quotes around it or less indentation",
	"found unexpected end of stream":                  "the quotes opened here are never closed, expected a closing quote",
	"could not find expected ':'":                     "found a key without \":\", expected \"key: value\"",
	"did not find expected ',' or ']'":                "the [ is not closed, expected , or ]",
	"did not find expected ',' or '}'":                "the { is not closed, expected , or }",
	"did not find expected <document start>":          "text follows the end of the document, expected a line of --- before it",
	"found a tab character that violates indentation": "a tab is used for indentation, expected spaces",
}

// explainSyntax turns a parser's error into one without line number, which badLine finds better.
func explainSyntax(err error) error {
	msg := yamlPrefix.ReplaceAllString(err.Error(), "")
	if hint, ok := hints[msg]; ok {
		msg = hint
	}
	return errors.New("is not YAML: " + msg)
}

// maxBisect is the longest document, in lines, whose bad line is searched for.
const maxBisect = 5000

// badLine returns the 0-based line of text at which it stops being YAML. The parser names the line
// at which the enclosing block began, often far above, so the line is searched for: it is the one
// after the longest run of lines from the start that parses.
func badLine(text []byte, err error) int {
	ends := []int{0}
	for pos := 0; pos < len(text); {
		pos += lineLen(text[pos:])
		ends = append(ends, pos)
	}
	last := len(ends) - 1
	if last > maxBisect {
		if m := yamlPrefix.FindStringSubmatch(err.Error()); m != nil && m[1] != "" {
			if n, err := strconv.Atoi(m[1]); err == nil && n <= last {
				return max(n-1, 0)
			}
		}
		return 0
	}
	good := func(n int) bool { _, err := parseYAML(text[:ends[n]]); return err == nil }
	// Two passes of about √n steps each: coarse from the end, then line by line in between.
	stride := max(1, int(math.Sqrt(float64(last))))
	low, high := 0, last
	for n := last - stride; n > 0; n -= stride {
		if good(n) {
			low = n
			break
		}
		high = n
	}
	for n := high - 1; n > low; n-- {
		if good(n) {
			return n
		}
	}
	return min(low, max(last-1, 0))
}

var objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// guessID reads the identity of a document that is not YAML from its lines, as far as they are
// written in block style. Whatever is ambiguous or cannot be a name is left empty.
func guessID(text []byte) ID {
	var id ID
	kinds, inMeta, indent := 0, false, -1
	for _, raw := range bytes.Split(text, []byte("\n")) {
		line := strings.TrimRight(string(bytes.TrimPrefix(raw, bom)), " \t\r")
		body := strings.TrimLeft(line, " ")
		if body == "" || body[0] == '#' {
			continue
		}
		depth := len(line) - len(body)
		key, value, ok := strings.Cut(body, ":")
		value = plainValue(value)
		switch {
		case depth == 0:
			inMeta, indent = ok && key == "metadata", -1
			if ok && key == "kind" {
				kinds++
				id.Kind = value
			}
			if ok && key == "apiVersion" {
				id.APIVersion = value
			}
		case inMeta && (indent == -1 || depth == indent):
			indent = depth
			if ok && key == "name" && objectName.MatchString(value) {
				id.Name = value
			}
			if ok && key == "namespace" && objectName.MatchString(value) {
				id.Namespace = value
			}
		}
	}
	if kinds != 1 || strings.HasSuffix(id.Kind, "List") {
		return ID{}
	}
	return id
}

// plainValue strips comment and quotes from the text after a colon.
func plainValue(v string) string {
	v, _, _ = strings.Cut(v, " #")
	v = strings.TrimSpace(v)
	if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
		v = v[1 : len(v)-1]
	}
	return v
}
