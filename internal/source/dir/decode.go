package dir

import (
	"errors"
	"fmt"
	"slices"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source"
	"github.com/braidnet/braid/internal/source/manifest"
)

// unknown is a document of a kind that the model does not have.
type unknown struct {
	apiVersion, kind string
	place            string // file:line
}

// decode reads the content of the file called name. old is what the file said before: its objects
// stay in force for documents that are broken now.
func decode(name string, data []byte, old *file) (*file, []unknown) {
	f := &file{given: map[model.Ref]model.Object{}}
	var strangers []unknown
	docs, errs := manifest.Parse(name, data, source.Known)
	for i := range docs {
		d := &docs[i]
		for _, w := range d.Warnings {
			f.notices = append(f.notices, noticeOf(w, true))
		}
		if d.Object == nil {
			strangers = append(strangers, unknown{d.APIVersion, d.Kind, fmt.Sprintf("%s:%d", d.File, d.Line)})
			continue
		}
		obj, err := source.Convert(d.Object, model.Origin{File: name, Line: d.Line})
		if err != nil {
			errs = append(errs, placed(d, err)...)
		}
		if obj != nil { // of a policy, also with an error
			f.add(obj)
		}
	}
	for _, e := range errs {
		f.notices = append(f.notices, noticeOf(e, false))
	}
	if old != nil {
		f.keep(old, errs)
	}
	return f, strangers
}

// placed gives each field error of a document its line.
func placed(d *manifest.Document, err error) []*manifest.Error {
	var fields source.Errors
	if !errors.As(err, &fields) {
		return []*manifest.Error{d.At("", err)}
	}
	out := make([]*manifest.Error, len(fields))
	for i, fe := range fields {
		out[i] = d.At(fe.Path, fe)
	}
	return out
}

// add takes in a good document, unless an earlier one of the file gives the same object.
func (f *file) add(obj model.Object) {
	origin := obj.From()
	if first := f.given[origin.Ref]; first != nil {
		f.notices = append(f.notices, givenTwice(origin, first.From(), "which comes first in the file and is used"))
		return
	}
	f.given[origin.Ref] = obj
}

// keep takes over the last good version of what is broken now. Where an error does not even tell
// which object it is about, everything that the file gave before and does not give now is kept.
func (f *file) keep(old *file, errs []*manifest.Error) {
	for ref, obj := range old.given {
		if f.given[ref] != nil {
			continue
		}
		if slices.ContainsFunc(errs, func(e *manifest.Error) bool { return mayBe(e, ref) }) {
			f.given[ref] = obj
		}
	}
}

// mayBe reports whether a broken document may be the object ref.
func mayBe(e *manifest.Error, ref model.Ref) bool {
	kind := model.Kind(e.Kind)
	switch {
	case e.Kind != "" && kind != model.KindServiceImport && !slices.Contains(model.Kinds, kind):
		return false
	case e.Kind == "" || e.Name == "":
		return true
	case e.Guessed && e.Namespace == "":
		return kind == ref.Kind && e.Name == ref.Name
	}
	return source.Ref(kind, e.Namespace, e.Name) == ref
}

func noticeOf(e *manifest.Error, warning bool) notice {
	return notice{
		key:     fmt.Sprintf("%s|%s|%v", e.File, e.ID, e.Err),
		text:    e.Error(),
		warning: warning,
	}
}
