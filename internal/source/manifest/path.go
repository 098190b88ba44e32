package manifest

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// joinPath prints the steps to a field as Kubernetes does: a.b[0].c, with keys that hold a dot or a
// slash in brackets.
func joinPath(steps []string) string {
	var b strings.Builder
	for _, s := range steps {
		switch {
		case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
			b.WriteString(s)
		case strings.ContainsAny(s, "./[]"):
			b.WriteString("[" + s + "]")
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s)
		}
	}
	return b.String()
}

// lookup returns the node that stands for a field path: the key of a mapping's field, the item of a
// list, or the nearest one above it that exists.
func lookup(root *yaml.Node, path string) *yaml.Node {
	at := root
	n := root
	for rest := path; rest != ""; {
		n = deref(n)
		switch n.Kind {
		case yaml.MappingNode:
			f, tail := step(n, rest)
			if f == nil {
				return at
			}
			at, n, rest = f.key, f.value, tail
		case yaml.SequenceNode:
			i, tail, ok := indexStep(rest)
			if !ok || i >= len(n.Content) {
				return at
			}
			at, n, rest = n.Content[i], n.Content[i], tail
		default:
			return at
		}
	}
	return at
}

// step finds the field of a mapping that the path begins with. Keys may hold dots themselves, so
// the longest key that fits wins.
func step(n *yaml.Node, path string) (best *field, rest string) {
	left := budget(len(n.Content))
	for _, f := range fieldsOf(n, &left, nil) {
		tail, ok := cutKey(path, f.key.Value)
		if ok && (best == nil || len(tail) < len(rest)) {
			best, rest = &field{f.key, f.value}, tail
		}
	}
	return best, rest
}

// cutKey removes a key, plain or in brackets, from the front of a path.
func cutKey(path, key string) (rest string, ok bool) {
	if rest, ok = strings.CutPrefix(path, "["+key+"]"); !ok {
		if rest, ok = strings.CutPrefix(path, key); !ok {
			return "", false
		}
	}
	switch {
	case rest == "":
		return "", true
	case rest[0] == '.':
		return rest[1:], true
	case rest[0] == '[':
		return rest, true
	}
	return "", false
}

// indexStep reads the [n] that a path begins with.
func indexStep(path string) (i int, rest string, ok bool) {
	num, rest, ok := strings.Cut(path, "]")
	if !ok || !strings.HasPrefix(num, "[") {
		return 0, "", false
	}
	i, err := strconv.Atoi(num[1:])
	return i, strings.TrimPrefix(rest, "."), err == nil && i >= 0
}
