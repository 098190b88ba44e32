package enforce

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/policy"
)

// Attachment is what the CNI plugin says about an interface that it made for a pod, and what the next agent is told of it.
type Attachment struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid"`
	Link      string       `json:"link"`
	Addrs     []netip.Addr `json:"addresses"`
}

// Whole reports whether nothing is missing that every attachment has.
func (a Attachment) Whole() bool { return a.Name != "" && a.Link != "" && len(a.Addrs) > 0 }

func (a Attachment) of() policy.Attachment {
	return policy.Attachment{Pod: model.Key{Namespace: a.Namespace, Name: a.Name}, UID: a.UID, Link: a.Link, Addrs: a.Addrs}
}

// attachmentBook remembers the attachments of pods over a restart of the agent, a file for each link: until the
// kubelet has reported a new pod's addresses, nobody else could tell the next agent of them, and it would cut
// the pod off. It is in the run folder, since links do not outlive a restart of the machine either.
type attachmentBook struct {
	log *slog.Logger
	dir string // empty: nothing is remembered
}

func attachmentsDir(runDir string) string { return filepath.Join(runDir, "attachments") }

// path is empty for what cannot be the name of a link.
func (b *attachmentBook) path(link string) string {
	if b.dir == "" || link != filepath.Base(link) || link == "." || link == ".." {
		return ""
	}
	return filepath.Join(b.dir, link)
}

// save remembers an attachment. A failure costs the pod its connections for a moment, and only if the agent is
// restarted just then: it is logged, and no more.
func (b *attachmentBook) save(a Attachment) {
	path := b.path(a.Link)
	if path == "" {
		return
	}
	data, err := json.Marshal(a)
	if err == nil {
		err = os.MkdirAll(b.dir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(path+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		b.log.Warn("an attachment will not be known to the next agent", "pod", a.Namespace+"/"+a.Name, "link", a.Link, "err", err)
	}
}

// forget removes what was remembered of a link.
func (b *attachmentBook) forget(link string) {
	if path := b.path(link); path != "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.log.Warn("forget an attachment", "link", link, "err", err)
		}
	}
}

// load returns what an earlier agent remembered. What cannot be read is removed.
func (b *attachmentBook) load() (out []policy.Attachment) {
	entries, err := os.ReadDir(b.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && b.dir != "" {
		b.log.Warn("read the attachments of the agent before", "err", err)
	}
	for _, e := range entries {
		var x Attachment
		data, err := os.ReadFile(filepath.Join(b.dir, e.Name()))
		if err == nil {
			err = json.Unmarshal(data, &x)
		}
		if err != nil || !x.Whole() || x.Link != e.Name() {
			b.log.Warn("an attachment of the agent before cannot be read", "file", filepath.Join(b.dir, e.Name()), "err", err)
			_ = os.Remove(filepath.Join(b.dir, e.Name()))
			continue
		}
		out = append(out, x.of())
	}
	return out
}
