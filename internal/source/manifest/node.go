package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fieldError is something wrong at a line of the text that was parsed.
type fieldError struct {
	line int
	err  error
}

func (f *fieldError) Error() string { return f.err.Error() }

// maxDepth bounds the nesting of a document, which aliases can make endless.
const maxDepth = 500

// maxWarnings bounds the warnings of one document: aliases can repeat a repeated key without end.
const maxWarnings = 100

// budget returns how many nodes a text of so many bytes may stand for once its aliases are
// expanded: without a bound, a small file can expand to gigabytes.
func budget(size int) int { return 100_000 + size }

// deref follows an alias to the node it stands for.
func deref(n *yaml.Node) *yaml.Node {
	for i := 0; n.Kind == yaml.AliasNode && n.Alias != nil && i < maxDepth; i++ {
		n = n.Alias
	}
	return n
}

// field is one key of a mapping with its value.
type field struct {
	key, value *yaml.Node
}

// fieldsOf returns the fields of a mapping: of repeated keys the last one, at the place of the
// first, followed by what its merge keys (<<) add. dup is told of each repeated key. left is the
// budget of nodes to visit.
func fieldsOf(n *yaml.Node, left *int, dup func(first, again *yaml.Node)) []field {
	out := make([]field, 0, len(n.Content)/2)
	index := make(map[string]int, len(n.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := deref(n.Content[i]), n.Content[i+1]
		*left -= 2
		if isMerge(key) {
			merges = append(merges, value)
			continue
		}
		if at, ok := index[key.Value]; ok {
			if dup != nil {
				dup(out[at].key, key)
			}
			out[at] = field{key, value}
			continue
		}
		index[key.Value] = len(out)
		out = append(out, field{key, value})
	}
	for _, m := range merges {
		out = merge(out, index, m, left, 0)
	}
	return out
}

// merge adds the fields of m, a mapping or a list of mappings, that out does not have yet.
func merge(out []field, index map[string]int, m *yaml.Node, left *int, depth int) []field {
	m = deref(m)
	if depth > maxDepth || *left < 0 {
		return out
	}
	if m.Kind == yaml.SequenceNode {
		for _, item := range m.Content {
			*left--
			out = merge(out, index, item, left, depth+1)
		}
		return out
	}
	if m.Kind != yaml.MappingNode {
		return out
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := deref(m.Content[i]), m.Content[i+1]
		*left -= 2
		if isMerge(key) {
			out = merge(out, index, value, left, depth+1)
			continue
		}
		if _, ok := index[key.Value]; !ok {
			index[key.Value] = len(out)
			out = append(out, field{key, value})
		}
	}
	return out
}

func isMerge(key *yaml.Node) bool {
	return key.Kind == yaml.ScalarNode && key.Value == "<<" && key.ShortTag() == "!!merge"
}

// child returns the value of a mapping's key, or nil.
func child(n *yaml.Node, key string) *yaml.Node {
	n = deref(n)
	if n.Kind != yaml.MappingNode {
		return nil
	}
	left := budget(len(n.Content))
	for _, f := range fieldsOf(n, &left, nil) {
		if f.key.Value == key {
			return deref(f.value)
		}
	}
	return nil
}

// text returns the scalar at a mapping's key as it is written, or "".
func text(n *yaml.Node, key string) string {
	if v := child(n, key); v != nil && v.Kind == yaml.ScalarNode && v.ShortTag() != "!!null" {
		return v.Value
	}
	return ""
}

// repeated returns the second of two equal keys of a mapping, or nil.
func repeated(n *yaml.Node, key string) (second *yaml.Node) {
	left := budget(len(n.Content))
	fieldsOf(n, &left, func(_, again *yaml.Node) {
		if again.Value == key && second == nil {
			second = again
		}
	})
	return second
}

// encoder turns nodes into the JSON that Kubernetes would make of them: scalars by YAML 1.1 (plain
// yes, no, on and off are booleans), merge keys resolved, keys always strings.
type encoder struct {
	budget   int
	offset   int // lines of the file before the text, for messages
	warnings []fieldError
	path     []string
	buf      bytes.Buffer
}

// encode returns n as JSON; its error is a *fieldError.
func (e *encoder) encode(n *yaml.Node) ([]byte, error) {
	if err := e.node(n, 0); err != nil {
		return nil, err
	}
	return e.buf.Bytes(), nil
}

func (e *encoder) fail(n *yaml.Node, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if len(e.path) > 0 {
		err = fmt.Errorf("%s: %w", joinPath(e.path), err)
	}
	return &fieldError{line: n.Line, err: err}
}

func (e *encoder) node(n *yaml.Node, depth int) error {
	at := n
	n = deref(n)
	if e.budget--; e.budget < 0 || depth > maxDepth {
		return e.fail(at, "is too large or too deep once its aliases are expanded, expected at most %d levels", maxDepth)
	}
	switch n.Kind {
	case yaml.MappingNode:
		return e.mapping(n, depth)
	case yaml.SequenceNode:
		e.buf.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				e.buf.WriteByte(',')
			}
			e.path = append(e.path, "["+strconv.Itoa(i)+"]")
			if err := e.node(item, depth+1); err != nil {
				return err
			}
			e.path = e.path[:len(e.path)-1]
		}
		e.buf.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		data, err := scalarJSON(n)
		if err != nil {
			return e.fail(at, "%w", err)
		}
		e.buf.Write(data)
		return nil
	}
	return e.fail(at, "cannot be read, expected a mapping, a list or a scalar")
}

func (e *encoder) mapping(n *yaml.Node, depth int) error {
	e.buf.WriteByte('{')
	fields := fieldsOf(n, &e.budget, func(first, again *yaml.Node) {
		if len(e.warnings) >= maxWarnings {
			return
		}
		path := joinPath(append(e.path, again.Value))
		e.warnings = append(e.warnings, fieldError{again.Line,
			fmt.Errorf("%s: is given twice, the one at line %d is ignored", path, first.Line+e.offset)})
	})
	for i, f := range fields {
		if f.key.Kind != yaml.ScalarNode {
			return e.fail(f.key, "has %s as a key, expected a text", describe(f.key))
		}
		if i > 0 {
			e.buf.WriteByte(',')
		}
		key, err := json.Marshal(f.key.Value)
		if err != nil {
			return e.fail(f.key, "key %q: %w", f.key.Value, err)
		}
		e.buf.Write(key)
		e.buf.WriteByte(':')
		e.path = append(e.path, f.key.Value)
		if err := e.node(f.value, depth+1); err != nil {
			return err
		}
		e.path = e.path[:len(e.path)-1]
	}
	e.buf.WriteByte('}')
	return nil
}

// yaml11Bools are the plain words that YAML 1.1, and so Kubernetes, reads as booleans and YAML 1.2
// as text.
var yaml11Bools = map[string]bool{"y": true, "yes": true, "on": true, "n": false, "no": false, "off": false}

// boolWord reports whether a plain scalar is a boolean word of YAML 1.1.
func boolWord(n *yaml.Node) (value, ok bool) {
	if n.Style != 0 || n.ShortTag() != "!!str" {
		return false, false
	}
	lower := strings.ToLower(n.Value)
	if n.Value != lower && n.Value != strings.ToUpper(lower) && n.Value != strings.ToUpper(lower[:1])+lower[1:] {
		return false, false
	}
	value, ok = yaml11Bools[lower]
	return value, ok
}

func scalarJSON(n *yaml.Node) ([]byte, error) {
	switch n.ShortTag() {
	case "!!null":
		return []byte("null"), nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return nil, fmt.Errorf("is %q, expected true or false", n.Value)
		}
		return json.Marshal(b)
	case "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return nil, fmt.Errorf("is %q, expected a number", n.Value)
		}
		if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
			return nil, fmt.Errorf("is %s, expected a finite number", n.Value)
		}
		return json.Marshal(v)
	case "!!binary":
		var s string
		if err := n.Decode(&s); err != nil {
			return nil, errors.New("is marked !!binary, expected base64 text")
		}
		return json.Marshal(s)
	}
	if b, ok := boolWord(n); ok {
		return json.Marshal(b)
	}
	return json.Marshal(n.Value)
}
