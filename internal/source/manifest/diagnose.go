package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kjson "sigs.k8s.io/json"
)

// diagnose finds the fields of root that do not fit the type of object, by decoding ever smaller
// parts alone. cause is the error that decoding the whole gave; it is used where no part explains it.
func diagnose(root *yaml.Node, object any, cause error, size int) []fieldError {
	if f, ok := cause.(*fieldError); ok {
		return []fieldError{*f}
	}
	d := diagnosis{size: size}
	d.walk(root, root, reflect.TypeOf(object).Elem(), nil)
	if len(d.found) == 0 {
		return []fieldError{{root.Line, cause}}
	}
	return d.found
}

type diagnosis struct {
	size  int
	found []fieldError
}

// walk records what is wrong at or below n, whose line is that of at. It returns whether anything is.
func (d *diagnosis) walk(n, at *yaml.Node, t reflect.Type, path []string) bool {
	err := d.try(n, t)
	if err == nil {
		return false
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	n = deref(n)
	before := len(d.found)
	if !reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		d.children(n, t, path)
	}
	if len(d.found) == before {
		d.found = append(d.found, fieldError{at.Line, complaint(n, t, path, err)})
	}
	return true
}

// children walks the parts of a mapping or list.
func (d *diagnosis) children(n *yaml.Node, t reflect.Type, path []string) {
	path = path[:len(path):len(path)]
	switch {
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for i, item := range n.Content {
			d.walk(item, item, t.Elem(), append(path, "["+strconv.Itoa(i)+"]"))
		}
	case n.Kind == yaml.MappingNode && (t.Kind() == reflect.Struct || t.Kind() == reflect.Map):
		left := budget(d.size)
		for _, f := range fieldsOf(n, &left, nil) {
			if ft := memberType(t, f.key.Value); ft != nil {
				d.walk(f.value, f.key, ft, append(path, f.key.Value))
			}
		}
	}
}

// try decodes n alone into a new value of type t.
func (d *diagnosis) try(n *yaml.Node, t reflect.Type) error {
	e := encoder{budget: budget(d.size)}
	data, err := e.encode(n)
	if err != nil {
		return err
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(data, reflect.New(t).Interface())
}

// memberType returns the type of a struct's field by its JSON name, or of a map's values; nil when
// the struct has no such field.
func memberType(t reflect.Type, name string) reflect.Type {
	if t.Kind() == reflect.Map {
		return t.Elem()
	}
	for i := range t.NumField() {
		f := t.Field(i)
		tag, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == name {
			return f.Type
		}
		if tag == "" && (f.Anonymous || opts == "inline") && f.Type.Kind() == reflect.Struct {
			if ft := memberType(f.Type, name); ft != nil {
				return ft
			}
		}
	}
	return nil
}

// complaint says what n is and what was expected of it.
func complaint(n *yaml.Node, t reflect.Type, path []string, err error) error {
	where := joinPath(path)
	if where != "" {
		where += ": "
	}
	want := expected(t)
	if want == "" {
		return fmt.Errorf("%sis %s, which does not fit: %w", where, describe(n), err)
	}
	if t.Kind() == reflect.String && n.Kind == yaml.ScalarNode {
		want += fmt.Sprintf(": put it in quotes, %q", n.Value)
	}
	return fmt.Errorf("%sis %s, expected %s", where, describe(n), want)
}

// expected names what a field of type t takes; "" when only its own decoder knows.
func expected(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		return "a time such as 2006-01-02T15:04:05Z"
	case reflect.TypeFor[resource.Quantity]():
		return "a quantity such as 100m or 2Gi"
	case reflect.TypeFor[intstr.IntOrString]():
		return "a whole number or a text"
	}
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int32, reflect.Uint32:
		return "a whole number of 32 bits"
	case reflect.Int, reflect.Int64, reflect.Uint64, reflect.Uint8, reflect.Int8, reflect.Int16, reflect.Uint16:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "base64 text"
		}
		return "a list"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	}
	return ""
}

// describe says what a node is, for people.
func describe(n *yaml.Node) string {
	n = deref(n)
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	value := n.Value
	if len(value) > 60 {
		value = value[:60] + "…"
	}
	if _, ok := boolWord(n); ok {
		return fmt.Sprintf("the boolean %s (a plain yes, no, on, off, y or n is one)", value)
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "the boolean " + value
	case "!!int", "!!float":
		return "the number " + value
	}
	return fmt.Sprintf("the text %q", value)
}
