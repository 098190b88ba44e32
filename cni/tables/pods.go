package tables

import (
	"errors"
	"fmt"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/nft"
	"golang.org/x/sys/unix"
)

// Want is what a pod is to have in the table of a family.
type Want func(desired.NFTFamily) []desired.NFTElement

// Put gives the pod behind a link what it is to have, and nothing else. Keys have to be the pod's alone: pods are not
// made to wait for each other.
func (g Group) Put(link string, want Want) error {
	conn, err := Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	whole, quick := true, []desired.NFTOp(nil)
	for i := range g {
		t := &g[i]
		comment, err := conn.Comment(t.Family, t.Name)
		whole = whole && err == nil && comment == t.Comment
		quick = append(quick, Contents{t.Family: {}}.Change(t, want(t.Family), false)...)
	}
	if whole && conn.Apply(quick) == nil {
		return nil
	}
	return g.Edit(func(have Contents) (ops []desired.NFTOp, err error) {
		for i := range g {
			var others []desired.NFTElement
			if c := have[g[i].Family]; c != nil {
				_, others = Of(link, c.Elements)
			}
			ops = append(ops, have.Change(&g[i], append(others, want(g[i].Family)...), true)...)
		}
		return ops, nil
	})
}

// Take takes away what the pod behind a link has, and says how many elements that were. A kernel without nftables
// has none.
func (g Group) Take(link string) (removed int, err error) {
	conn, err := Open()
	if errors.Is(err, ErrNone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for i := range g {
		n, err := take(conn, &g[i], link)
		if removed += n; err != nil {
			return removed, err
		}
	}
	return removed, nil
}

func take(conn *nft.Conn, t *desired.NFTTable, link string) (removed int, err error) {
	for {
		have, err := Group{*t}.Read(conn)
		if err != nil || have[t.Family] == nil {
			return 0, err
		}
		its, others := Of(link, have[t.Family].Elements)
		if len(its) == 0 {
			return 0, nil
		}
		err = conn.Apply(have.Change(t, others, false))
		if !errors.Is(err, unix.ENOENT) { // else somebody else removed them meanwhile
			return len(its), err
		}
	}
}

// Lacks says what of a pod's is not in the kernel; about is what the elements are for.
func (g Group) Lacks(want Want, about string) (missing []string, err error) {
	conn, err := Open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	have, err := g.Read(conn)
	if err != nil {
		return nil, err
	}
	for i := range g {
		t := &g[i]
		if text := Damage(t, have[t.Family]); text != "" {
			missing = append(missing, fmt.Sprintf("nftables table %s %s: %s", t.Family, t.Name, text))
			continue
		}
		for _, e := range want(t.Family) {
			if !have.Holds(t.Family, e) {
				missing = append(missing, fmt.Sprintf("set %s of nftables table %s %s lacks %s", e.Set, t.Family, t.Name, about))
			}
		}
	}
	return missing, nil
}
