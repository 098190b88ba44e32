// Package tables keeps nftables tables that only the CNI plugin writes: chains that never change, and sets
// whose elements belong to pods. Nothing about them is kept on disk: an element says in its comment whose
// it is, by the name of the host end of the pod's interface, so that what one pod has can be taken away
// exactly, by whoever knows the pod's container id, however it came to be left there.
package tables

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"golang.org/x/sys/unix"
)

// Owner is one interface of one pod.
type Owner struct {
	Link string // host end of the interface: follows from container id and interface name
	Pod  string // namespace/name, for people; may be empty
}

func (o Owner) String() string {
	if o.Pod == "" {
		return "the pod behind " + o.Link
	}
	return "pod " + o.Pod
}

// Comment is what elements of the owner carry. The link comes first: it is always whole.
func (o Owner) Comment() string {
	const most = 127
	text := strings.TrimSpace(o.Link + " " + o.Pod)
	return text[:min(len(text), most)]
}

// OwnerOf is whose an element is.
func OwnerOf(e desired.NFTElement) Owner {
	link, pod, _ := strings.Cut(e.Comment, " ")
	return Owner{Link: link, Pod: pod}
}

// Of parts elements into those of a link and those of others.
func Of(link string, list []desired.NFTElement) (its, others []desired.NFTElement) {
	for _, e := range list {
		if OwnerOf(e).Link == link {
			its = append(its, e)
		} else {
			others = append(others, e)
		}
	}
	return its, others
}

// Same tells whether two elements are in each other's place.
func Same(a, b desired.NFTElement) bool { return a.Set == b.Set && a.Key == b.Key }

// Group is tables of one name, one for each of some families. They are made when they are first needed: most calls
// of the plugin do without most of them.
type Group func() []desired.NFTTable

// Lazy is a Group.
func Lazy(make func() []desired.NFTTable) Group { return sync.OnceValue(make) }

// Seal writes into the comment of a table what it is for, and the digest of everything static, so that the
// table of another version of Braid is recognised. The digest is written down where the table is, as making it
// takes a tenth of an ADD; a test compares.
func Seal(t desired.NFTTable, about, digest string) desired.NFTTable {
	t.Comment = fmt.Sprintf("Braid %s, layout %s", about, digest)
	return t
}

// Digest is what Seal is to be given: another one for whatever may matter in the sets, chains and rules of a table.
func Digest(t desired.NFTTable) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %+v\n", t.Family, t.Sets)
	for _, c := range t.Chains {
		fmt.Fprintf(h, "chain %s %+v\n", c.Name, c.Hook)
		for _, r := range c.Rules {
			for _, e := range r.Exprs {
				fmt.Fprintf(h, "%T%+v ", e, e)
			}
			fmt.Fprintf(h, "# %s\n", r.Comment)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Damage says how the table in the kernel differs from the one we would make; empty when it does not. The
// comments of rules stand for the rules: the kernel gives expressions back in another form.
func Damage(t *desired.NFTTable, have *desired.NFTContents) string {
	switch {
	case have == nil:
		return "it is missing"
	case have.Comment != t.Comment:
		return "its layout is not that of this version"
	}
	for _, s := range t.Sets {
		if !have.Sets[s.Name] {
			return "it has no set " + s.Name
		}
	}
	for _, c := range t.Chains {
		got, ok := have.Rules[c.Name]
		if !ok {
			return "it has no chain " + c.Name
		}
		same := len(got) == len(c.Rules)
		for i := 0; same && i < len(got); i++ {
			same = got[i] == c.Rules[i].Comment
		}
		if !same {
			return "the rules of its chain " + c.Name + " were changed"
		}
	}
	return ""
}

// Contents is what the kernel has of the tables of a group; nil where there is none.
type Contents map[desired.NFTFamily]*desired.NFTContents

// Holds tells whether an element is there as wanted; what its comment says besides its owner is for people.
func (have Contents) Holds(f desired.NFTFamily, want desired.NFTElement) bool {
	return have[f] != nil && slices.ContainsFunc(have[f].Elements, func(e desired.NFTElement) bool {
		return Same(e, want) && e.Value == want.Value && OwnerOf(e).Link == OwnerOf(want).Link
	})
}

// Change lists what makes a table hold exactly the elements want. With repair a table that is missing or
// damaged is made anew.
func (have Contents) Change(t *desired.NFTTable, want []desired.NFTElement, repair bool) (ops []desired.NFTOp) {
	op := func(o desired.NFTOp) {
		o.Family, o.Table = t.Family, t.Name
		ops = append(ops, o)
	}
	got := have[t.Family]
	var old []desired.NFTElement
	switch rebuild := repair && Damage(t, got) != ""; {
	case rebuild:
		if got != nil {
			op(desired.NFTOp{Verb: desired.NFTDeleteTable})
		}
		op(desired.NFTOp{Verb: desired.NFTAddTable, Def: t})
		want = slices.DeleteFunc(want, func(e desired.NFTElement) bool { // what a set of another version held
			return !slices.ContainsFunc(t.Sets, func(s desired.NFTSet) bool { return s.Name == e.Set })
		})
	case got != nil:
		old = got.Elements
	}
	for i := range old {
		if !slices.Contains(want, old[i]) {
			op(desired.NFTOp{Verb: desired.NFTDeleteElement, Element: &old[i]})
		}
	}
	for i := range want {
		if !slices.Contains(old, want[i]) {
			op(desired.NFTOp{Verb: desired.NFTAddElement, Element: &want[i]})
		}
	}
	return ops
}

// ErrNone says that there is nothing to ask, so nothing of ours either.
var ErrNone = errors.New("this kernel has no nftables (module nf_tables)")

// Open connects to the nftables of the calling thread's network namespace.
func Open() (*nft.Conn, error) {
	conn, err := nft.Open()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	if _, err := conn.Generation(); errors.Is(err, unix.EINVAL) { // nfnetlink knows no such subsystem
		conn.Close()
		return nil, ErrNone
	}
	return conn, nil
}

// Read reads the tables of a group.
func (g Group) Read(conn *nft.Conn) (Contents, error) {
	have := Contents{}
	for _, t := range g() {
		c, err := conn.Read(t.Family, t.Name)
		if err != nil {
			return nil, err
		}
		have[t.Family] = c
	}
	return have, nil
}

// editTries bounds how often an edit starts over because the ruleset changed under it. Each time that
// happens somebody else got his work done.
const editTries = 200

// Edit reads the tables, asks work what to change, and changes that provided that nothing changed in
// between; else it starts over. So what work decides is decided on what is there.
func (g Group) Edit(work func(Contents) ([]desired.NFTOp, error)) error {
	conn, err := Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	for range editTries {
		generation, err := conn.Generation()
		if err != nil {
			return err
		}
		have, err := g.Read(conn)
		if err != nil {
			return err
		}
		ops, err := work(have)
		if err != nil {
			return err
		}
		if err := conn.ApplyAt(generation, ops); !errors.Is(err, nft.ErrGeneration) {
			return err
		}
	}
	return fmt.Errorf("nftables table %s: the ruleset changed %d times while it was edited: is something writing it without pause?", g()[0].Name, editTries)
}

// Destroy removes the tables with everything in them, and says which there were.
func (g Group) Destroy() (removed []string, err error) {
	err = g.Edit(func(have Contents) (ops []desired.NFTOp, err error) {
		removed = nil
		for _, t := range g() {
			if have[t.Family] != nil {
				ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: t.Family, Table: t.Name})
				removed = append(removed, fmt.Sprintf("nftables table %s %s", t.Family, t.Name))
			}
		}
		return ops, nil
	})
	if errors.Is(err, ErrNone) {
		return nil, nil
	}
	return removed, err
}
