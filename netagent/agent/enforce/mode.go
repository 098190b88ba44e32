package enforce

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/policy/iptables"
	"github.com/braidnet/braid/netagent/policy/nftables"
)

// openPlane opens the packet filter of a mode, and says why it is that one. In mode auto that is nftables wherever
// the kernel can, whatever mode services are in: either sees packets after translation, and only nftables changes rules and
// addresses in one transaction.
func openPlane(c Config) (plane packetFilter, why string, err error) {
	return openEither(c, newNFTables, newIPTables)
}

// openEither is openPlane with what opens them.
func openEither(c Config, newNFTables func(*slog.Logger, nftables.Options) (*nftablesPlane, error),
	newIPTables func(*slog.Logger, iptables.Options, bool) (*iptablesPlane, error)) (plane packetFilter, why string, err error) {
	if c.Mode != "iptables" {
		plane, err := newNFTables(c.Log, nftables.Options{Bridge: link.PodBridge, Links: link.VethPrefix, Drop: c.Drop, Log: c.Tell})
		switch {
		case err == nil && c.Mode == "auto":
			return plane, "the kernel can, and it is the best", nil
		case err == nil:
			return plane, "setting policy-mode", nil
		case c.Mode == "nftables":
			return nil, "", err
		}
		why = err.Error()
	}
	tables, err := newIPTables(c.Log, iptables.Options{Bridge: link.PodBridge, Links: link.VethPrefix, Drop: c.Drop, Log: c.Tell}, !c.Routed)
	switch {
	case err != nil && why != "":
		return nil, "", fmt.Errorf("%s; nor does policy mode iptables work here: %w", why, err)
	case err != nil:
		return nil, "", err
	case why == "":
		why = "setting policy-mode"
	}
	return tables, fmt.Sprintf("%s; variant %s: %s", why, tables.variant, tables.why), nil
}

// Remove takes away what enforcement left in the kernel in any mode, and says what.
func Remove() ([]string, error) {
	tables, err := removeNFTables()
	chains, other := removeIPTables("")
	return append(tables, chains...), errors.Join(err, other)
}

// removeNFTables takes away what enforcement with nftables left, and says what.
func removeNFTables() (removed []string, err error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, nil // no nftables, no tables
	}
	defer conn.Close()
	var empty, remove []desired.NFTOp
	for _, f := range append([]desired.NFTFamily{desired.NFTBridge}, nftables.Families...) {
		have, err := conn.Read(f, nftables.TableName)
		if err != nil || have == nil {
			continue
		}
		removed = append(removed, fmt.Sprintf("nftables table %s %s", f, nftables.TableName))
		remove = append(remove, desired.NFTOp{Verb: desired.NFTDeleteTable, Family: f, Table: nftables.TableName, Join: len(remove) > 0})
		for _, chain := range nftables.BaseChains(f) {
			if len(have.Rules[chain]) > 0 {
				empty = append(empty, desired.NFTOp{Verb: desired.NFTFlushChain, Family: f, Table: nftables.TableName, Chain: &desired.NFTChain{Name: chain}, Join: len(empty) > 0})
			}
		}
	}
	// The rules go first, alone: a packet that is on its way through them while all goes at once may meet maps without members,
	// and be refused.
	for _, ops := range [][]desired.NFTOp{empty, remove} {
		if err := conn.Apply(ops); err != nil {
			return nil, fmt.Errorf("remove the tables of policy: %w", err)
		}
	}
	return removed, nil
}

// otherMode takes away what an earlier run in another mode has left, which is in force beside ours until then: a packet
// has to pass both.
type otherMode struct {
	remove func() ([]string, error)
	done   bool
	failed string // what the log has been told
}

func newOtherMode(plane packetFilter) otherMode {
	if _, ok := plane.(*iptablesPlane); ok {
		return otherMode{remove: removeNFTables}
	}
	return otherMode{remove: func() ([]string, error) { return removeIPTables("") }}
}

// clear is called when our rules are in force. It is tried again with each step.
func (o *otherMode) clear(log *slog.Logger) (changes []string) {
	if o.done {
		return nil
	}
	changes, err := o.remove()
	switch {
	case err == nil:
		o.done = true
	case o.failed != err.Error():
		o.failed = err.Error()
		log.Warn("policies: what another mode has left stays in force beside this one", "err", err)
	}
	return changes
}
