// Package manifest reads Kubernetes manifests: files of one or more YAML or JSON documents. It keeps
// for each document the line it starts at, and finds the line of any field in it, so that whatever
// is wrong with a document can be reported as file:line. A broken document never affects the others
// of its file: the text is cut into documents first and each is parsed alone.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
)

// ID is what a document says it is. Namespace is as written: empty when the document gives none.
type ID struct {
	APIVersion, Kind, Namespace, Name string
}

// String prints "Kind namespace/name" with as much of it as is known, or "document".
func (id ID) String() string {
	kind := id.Kind
	if kind == "" {
		kind = "document"
	}
	name := id.Name
	if id.Namespace != "" {
		name = id.Namespace + "/" + id.Name
	}
	return strings.TrimSpace(kind + " " + name)
}

// Document is one document that could be read. Items of a List are documents of their own.
type Document struct {
	ID
	File     string
	Line     int            // 1-based line of the document's first field
	Object   runtime.Object // the decoded object; nil when the caller does not know the kind
	Warnings []*Error       // unknown and repeated fields: they are ignored, the object is good

	root   *yaml.Node
	offset int // lines of the file before the text that root was parsed from
}

// LineOf returns the 1-based line of a field such as "spec.ports[0].port" or
// "metadata.labels[app.kubernetes.io/name]"; of its nearest parent that exists when the field is
// missing, and of the document for an empty path.
func (d *Document) LineOf(path string) int {
	if path == "" || d.root == nil {
		return d.Line
	}
	return lookup(d.root, path).Line + d.offset
}

// At returns an Error about the field at path of this document.
func (d *Document) At(path string, err error) *Error {
	return &Error{ID: d.ID, File: d.File, Line: d.LineOf(path), Err: err}
}

// Error is something wrong with one document, or a warning about it.
type Error struct {
	ID   // what could still be read of the document's identity
	File string
	Line int // 1-based
	// Guessed is set when the document is not even YAML, so that ID was read from its text line by
	// line and an empty Namespace does not mean that the document gives none.
	Guessed bool
	Err     error
}

// Error prints "file:line: Kind ns/name: what was wrong, what was expected".
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d: %s: %v", e.File, e.Line, e.ID, e.Err)
}

// Unwrap returns what was wrong, without the place.
func (e *Error) Unwrap() error { return e.Err }

// Parse reads every document of data. known returns a new, empty object to decode a kind into, or
// nil for kinds the caller does not use: those are listed without Object. file is only for messages.
// Empty documents are skipped; the items of a List stand for the List.
func Parse(file string, data []byte, known func(apiVersion, kind string) runtime.Object) (docs []Document, errs []*Error) {
	p := &parser{file: file, known: known}
	for _, c := range split(data) {
		p.chunk(c)
	}
	return p.docs, p.errs
}

type parser struct {
	file  string
	known func(apiVersion, kind string) runtime.Object
	docs  []Document
	errs  []*Error
}

// chunk parses the text of one document.
func (p *parser) chunk(c chunk) {
	root, err := parseYAML(c.text)
	if err != nil {
		p.errs = append(p.errs, &Error{ID: guessID(c.text), Guessed: true, File: p.file,
			Line: c.first + badLine(c.text, err), Err: explainSyntax(err)})
		return
	}
	if root != nil {
		p.document(root, c.first-1, len(c.text), ID{}, 0)
	}
}

// parseYAML returns the root value of the only document in text, nil when there is none.
func parseYAML(text []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc, extra yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	}
	switch err := dec.Decode(&extra); {
	case err == nil:
		return nil, errors.New("a second document begins without a line of ---")
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil
	}
	return root, nil
}

// maxListDepth bounds Lists inside Lists.
const maxListDepth = 8

// document reads one object, or the items of a List. assumed fills in the apiVersion and kind that
// items of a typed list (ServiceList) may leave out; size is the length of the text it came from.
func (p *parser) document(root *yaml.Node, offset, size int, assumed ID, depth int) {
	d := Document{File: p.file, Line: root.Line + offset, root: root, offset: offset}
	root = deref(root)
	fail := func(path, format string, args ...any) {
		p.errs = append(p.errs, d.At(path, fmt.Errorf(format, args...)))
	}
	if root.Kind != yaml.MappingNode {
		fail("", "is %s, expected a mapping with apiVersion, kind and metadata", describe(root))
		return
	}
	for _, key := range []string{"kind", "metadata"} {
		if again := repeated(root, key); again != nil {
			p.errs = append(p.errs, &Error{File: p.file, Line: again.Line + offset,
				Err: fmt.Errorf("a second %s in one document, expected a line of --- between two documents", key)})
			return
		}
	}
	d.ID = readID(root, assumed)
	if d.Kind == "" || d.APIVersion == "" {
		fail("", "has no apiVersion or no kind, expected both, such as \"apiVersion: v1\" and \"kind: Service\"")
		return
	}
	object := p.known(d.APIVersion, d.Kind)
	if items, ok := listItems(root, d.Kind); ok && object == nil {
		if depth >= maxListDepth {
			fail("items", "Lists are nested more than %d deep, expected a flat List", maxListDepth)
			return
		}
		child := ID{APIVersion: d.APIVersion, Kind: strings.TrimSuffix(d.Kind, "List")}
		for _, item := range items {
			p.document(item, offset, size, child, depth+1)
		}
		return
	}
	if object != nil && !p.decode(&d, object, size) {
		return
	}
	p.docs = append(p.docs, d)
}

// decode fills d.Object and d.Warnings, or reports every field that does not fit.
func (p *parser) decode(d *Document, object runtime.Object, size int) bool {
	e := encoder{budget: budget(size), offset: d.offset}
	data, err := e.encode(d.root)
	var strict []error
	if err == nil {
		strict, err = kjson.UnmarshalStrict(data, object, kjson.DisallowUnknownFields)
	}
	if err != nil {
		for _, f := range diagnose(d.root, object, err, size) {
			p.errs = append(p.errs, &Error{ID: d.ID, File: d.File, Line: f.line + d.offset, Err: f.err})
		}
		return false
	}
	if d.Name == "" {
		p.errs = append(p.errs, d.At("metadata.name", errors.New("metadata.name: is missing, expected the object's name")))
		return false
	}
	for _, w := range e.warnings {
		d.Warnings = append(d.Warnings, &Error{ID: d.ID, File: d.File, Line: w.line + d.offset, Err: w.err})
	}
	for _, s := range strict {
		path := ""
		if f, ok := s.(kjson.FieldError); ok {
			path = f.FieldPath()
		}
		d.Warnings = append(d.Warnings, d.At(path, fmt.Errorf("%s: unknown field of %s, ignored", path, d.Kind)))
	}
	d.Object = object
	return true
}

// readID reads the identity from a mapping's nodes, whatever else is wrong with it.
func readID(root *yaml.Node, assumed ID) ID {
	id := ID{
		APIVersion: text(root, "apiVersion"),
		Kind:       text(root, "kind"),
	}
	if meta := child(root, "metadata"); meta != nil {
		id.Namespace, id.Name = text(meta, "namespace"), text(meta, "name")
	}
	if id.APIVersion == "" && id.Kind == "" {
		id.APIVersion, id.Kind = assumed.APIVersion, assumed.Kind
	}
	return id
}

// listItems returns the items of a mapping whose kind ends in List.
func listItems(root *yaml.Node, kind string) ([]*yaml.Node, bool) {
	if !strings.HasSuffix(kind, "List") {
		return nil, false
	}
	items := child(root, "items")
	if items == nil {
		return nil, kind == "List"
	}
	if items.Kind == yaml.ScalarNode && items.ShortTag() == "!!null" {
		return nil, true
	}
	return items.Content, items.Kind == yaml.SequenceNode
}
