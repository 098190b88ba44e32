package ipset

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
)

// BenchmarkAdd fills a set with 10,000 members: by this package, by the netlink library, which sends one in a message, and
// by the tool.
func BenchmarkAdd(b *testing.B) {
	set := desired.IPSet{Name: "braid-many", Type: desired.IPSetAddrPort}
	list := many(set, 10000)
	ns, c := open(b)
	run := func(name string, fill func() error) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := c.Apply([]desired.IPSetOp{{Set: set}}); err != nil {
					b.Fatal(err)
				}
				ns.Run(b, fill)
				if all, err := c.List(set.Name); err != nil || all[0].Members != len(list) {
					b.Fatalf("%+v, %v", all, err)
				}
				if err := c.Apply([]desired.IPSetOp{{Verb: desired.IPSetDestroy, Set: set}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("batches", func() error { return c.Apply([]desired.IPSetOp{{Verb: desired.IPSetAdd, Set: set, Members: list}}) })
	run("library", func() error {
		for _, m := range list {
			if err := netlink.IpsetAdd(set.Name, &netlink.IPSetEntry{IP: m.Prefix.Addr().AsSlice(), Port: &m.Port, Protocol: &m.Protocol}); err != nil {
				return err
			}
		}
		return nil
	})
	run("tool", func() error {
		var text strings.Builder
		for _, m := range list {
			fmt.Fprintf(&text, "add %s %s\n", set.Name, m)
		}
		file := filepath.Join(b.TempDir(), "members")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			return err
		}
		_, err := ns.Output("ipset", "-file", file, "restore")
		return err
	})
}
