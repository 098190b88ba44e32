package agent

import (
	"bytes"
	"encoding/gob"
	"errors"
	"os"
	"path/filepath"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/netagent/install"
)

// podRulesFile is a file in the run folder with what podRules has seen, for the next agent: rules that somebody
// flushes while no agent runs are put back too. Like the rules it does not outlive the machine.
const podRulesFile = "pod-rules"

// seenTable is one table in the file. Comment seals its layout: the elements of another one mean something else.
type seenTable struct {
	Family   desired.NFTFamily
	Name     string
	Comment  string
	Elements []desired.NFTElement
}

// recall reads what the agent before saw. Without a file, or with one that cannot be read, nothing was seen.
func (p *podRules) recall() {
	data, err := os.ReadFile(p.file)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var list []seenTable
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(data)).Decode(&list)
	}
	if err != nil {
		p.log.Warn("rules of pods: what the last agent saw is not known: what was flushed since cannot be put back", "file", p.file, "err", err)
		return
	}
	p.kept = data
	for _, s := range list {
		for _, g := range podTables {
			for _, t := range g() {
				if t.Family == s.Family && t.Name == s.Name && t.Comment == s.Comment {
					p.seen[tableKey{s.Family, s.Name}] = s.Elements
				}
			}
		}
	}
}

// keep writes what was seen, when it is not what the file says already.
func (p *podRules) keep() error {
	var list []seenTable
	for _, g := range podTables {
		for _, t := range g() {
			if elements, ok := p.seen[tableKey{t.Family, t.Name}]; ok {
				list = append(list, seenTable{t.Family, t.Name, t.Comment, elements})
			}
		}
	}
	var data bytes.Buffer
	if err := gob.NewEncoder(&data).Encode(list); err != nil {
		return err
	}
	if list == nil && p.kept == nil || bytes.Equal(data.Bytes(), p.kept) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.file), 0o755); err != nil {
		return err
	}
	if err := install.Replace(p.file, data.Bytes(), 0o600); err != nil {
		return err
	}
	p.kept = data.Bytes()
	return nil
}
