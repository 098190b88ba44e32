package hostport

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"golang.org/x/sys/unix"
)

// TakenError says that another pod has the port.
type TakenError struct {
	Port   Port
	Holder Owner
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("host port %s belongs to %s (%s): delete that pod, or use another hostPort or hostIP", e.Port, e.Holder, e.Holder.Link)
}

// Store is the host ports of the node that the calling thread's network namespace is of. Any number of
// processes may use it.
type Store struct {
	Log *slog.Logger
	// Alive tells whether the node has a link.
	Alive func(link string) (bool, error)
}

// Add gives owner the host ports of mappings, for a pod with these addresses: all of them or, on an
// error, none. What else owner holds goes. So does an element in the way whose link is gone, left by a pod
// that was never deleted; when the link is there the error is a *TakenError.
func (s *Store) Add(owner Owner, mappings []Mapping, pod []netip.Addr) error {
	want, err := rules(mappings, pod)
	if err != nil {
		return err
	}
	var gone []rule
	err = edit(func(have contents) (ops []desired.NFTOp, err error) {
		gone = nil
		for _, f := range Families {
			add := elements(owner, of(f, want))
			keep, drop, err := have.without(f, func(e desired.NFTElement) (bool, error) { return yields(f, e, owner, add, s.Alive) })
			if err != nil {
				return nil, err
			}
			gone = append(gone, drop...)
			ops = append(ops, have.change(families[f], append(keep, add...), len(add) > 0)...)
		}
		return ops, nil
	})
	switch {
	case errors.Is(err, errNoNftables):
		return fmt.Errorf("host ports need nftables: %w", err)
	case err != nil:
		return err
	}
	s.forget(append(gone, want...), want)
	return nil
}

// Remove takes away every host port of the links and says how many elements that were. It is no error
// when there are none.
func (s *Store) Remove(links ...string) (removed int, err error) {
	return s.RemoveIf(func(link string) bool { return slices.Contains(links, link) })
}

// RemoveIf is Remove for all links that which says yes to.
func (s *Store) RemoveIf(which func(link string) bool) (removed int, err error) {
	var gone []rule
	err = edit(func(have contents) (ops []desired.NFTOp, err error) {
		gone = nil
		for _, f := range Families {
			keep, drop, _ := have.without(f, func(e desired.NFTElement) (bool, error) { return which(ownerOf(e.Comment).Link), nil })
			gone = append(gone, drop...)
			ops = append(ops, have.change(families[f], keep, false)...)
		}
		removed = len(ops)
		return ops, nil
	})
	if errors.Is(err, errNoNftables) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	s.forget(gone, nil)
	return removed, nil
}

// Destroy removes the tables with everything in them, and says which there were. Nothing may lead from a
// loopback address to pods any more (route_localnet on their bridge) when they go.
func Destroy() (removed []string, err error) {
	err = edit(func(have contents) (ops []desired.NFTOp, err error) {
		removed = nil
		for _, f := range Families {
			if have[f] != nil {
				ops = append(ops, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: TableName})
				removed = append(removed, fmt.Sprintf("nftables table %s %s", f, TableName))
			}
		}
		return ops, nil
	})
	if errors.Is(err, errNoNftables) {
		return nil, nil
	}
	return removed, err
}

// Missing says what is not in the kernel of what Add with the same arguments put there.
func (s *Store) Missing(owner Owner, mappings []Mapping, pod []netip.Addr) (missing []string, err error) {
	want, err := rules(mappings, pod)
	if err != nil || len(want) == 0 {
		return nil, err
	}
	conn, err := open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := read(conn)
	if err != nil {
		return nil, err
	}
	for _, f := range Families {
		mine, t := of(f, want), families[f].table()
		if len(mine) == 0 {
			continue
		}
		if text := damage(&t, have[f]); text != "" {
			missing = append(missing, fmt.Sprintf("nftables table %s %s: %s", f, TableName, text))
		}
		for _, r := range mine {
			if !have.holds(f, r.element(owner)) {
				missing = append(missing, fmt.Sprintf("host port %s does not lead to %s", r.host, r.pod))
			}
			if !have.holds(f, r.hairpin(owner)) {
				missing = append(missing, fmt.Sprintf("%s cannot reach itself by host port %s", r.pod.Addr(), r.host))
			}
		}
	}
	return missing, nil
}

func of(f desired.NFTFamily, list []rule) []rule {
	return slices.DeleteFunc(slices.Clone(list), func(r rule) bool { return r.family != f })
}

// elements is what makes rules of one family true.
func elements(owner Owner, list []rule) (out []desired.NFTElement) {
	for _, r := range list {
		for _, e := range []desired.NFTElement{r.element(owner), r.hairpin(owner)} {
			if !slices.ContainsFunc(out, func(o desired.NFTElement) bool { return same(e, o) }) {
				out = append(out, e)
			}
		}
	}
	return out
}

func same(a, b desired.NFTElement) bool { return a.Set == b.Set && a.Key == b.Key }

// yields tells whether an element in the kernel has to go when owner adds his.
func yields(f desired.NFTFamily, e desired.NFTElement, owner Owner, add []desired.NFTElement, alive func(string) (bool, error)) (bool, error) {
	holder := ownerOf(e.Comment)
	if holder.Link == owner.Link {
		return true, nil
	}
	if !slices.ContainsFunc(add, func(o desired.NFTElement) bool { return same(e, o) }) {
		return false, nil
	}
	if e.Set == setHairpins {
		return true, nil // the address is owner's, so whoever had it is gone
	}
	live, err := alive(holder.Link)
	if live && err == nil {
		r, _ := parse(f, e)
		err = &TakenError{r.host, holder}
	}
	return true, err
}

// contents is what the kernel has of our tables; nil where there is none.
type contents map[desired.NFTFamily]*desired.NFTContents

// holds tells whether an element is there as wanted; what its comment says besides its owner is for people.
func (have contents) holds(f desired.NFTFamily, want desired.NFTElement) bool {
	return have[f] != nil && slices.ContainsFunc(have[f].Elements, func(e desired.NFTElement) bool {
		return same(e, want) && e.Value == want.Value && ownerOf(e.Comment).Link == ownerOf(want.Comment).Link
	})
}

// without parts the elements of a family into those to keep and those to go, of which it returns the ports.
func (have contents) without(f desired.NFTFamily, goes func(desired.NFTElement) (bool, error)) (keep []desired.NFTElement, ports []rule, err error) {
	if have[f] == nil {
		return nil, nil, nil
	}
	for _, e := range have[f].Elements {
		drop, err := goes(e)
		if err != nil {
			return nil, nil, err
		}
		if !drop {
			keep = append(keep, e)
		} else if r, ok := parse(f, e); ok {
			ports = append(ports, r)
		}
	}
	return keep, ports, nil
}

// change lists what makes the table of a family hold exactly the elements want. With repair a table that is
// missing or damaged is made anew.
func (have contents) change(f family, want []desired.NFTElement, repair bool) (ops []desired.NFTOp) {
	op := func(o desired.NFTOp) {
		o.Family, o.Table = f.nft, TableName
		ops = append(ops, o)
	}
	t, got := f.table(), have[f.nft]
	var old []desired.NFTElement
	switch rebuild := repair && damage(&t, got) != ""; {
	case rebuild:
		if got != nil {
			op(desired.NFTOp{Verb: desired.NFTDeleteTable})
		}
		op(desired.NFTOp{Verb: desired.NFTAddTable, Def: &t})
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

// errNoNftables says that there is nothing to ask, so nothing of ours either.
var errNoNftables = errors.New("this kernel has no nftables (module nf_tables)")

func open() (*nft.Conn, error) {
	conn, err := nft.Open()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, errNoNftables
	}
	return conn, err
}

func read(conn *nft.Conn) (contents, error) {
	have := contents{}
	for _, f := range Families {
		c, err := conn.Read(f, TableName)
		if err != nil {
			return nil, err
		}
		have[f] = c
	}
	return have, nil
}

// editTries bounds how often an edit starts over because the ruleset changed under it. Each time that
// happens somebody else got his work done.
const editTries = 200

// edit reads our tables, asks work what to change, and changes that provided that nothing changed in
// between; else it starts over. So what work decides is decided on what is there.
func edit(work func(contents) ([]desired.NFTOp, error)) error {
	conn, err := open()
	if err != nil {
		return err
	}
	defer conn.Close()
	for range editTries {
		generation, err := conn.Generation()
		if errors.Is(err, unix.EINVAL) { // nfnetlink knows no such subsystem
			return errNoNftables
		}
		if err != nil {
			return err
		}
		have, err := read(conn)
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
	return fmt.Errorf("host ports: the ruleset changed %d times while they were edited: is something writing it without pause?", editTries)
}
