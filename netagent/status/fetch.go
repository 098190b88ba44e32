package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// Fetch asks the agent behind a unix socket for its report. The error says what to do when none answers.
func Fetch(ctx context.Context, socket string) (*Report, error) {
	return fetchReport(ctx, socket, "/status")
}

// FetchAll is Fetch with what is in force of each Service.
func FetchAll(ctx context.Context, socket string) (*Report, error) {
	return fetchReport(ctx, socket, "/status?services=all")
}

func fetchReport(ctx context.Context, socket, path string) (*Report, error) {
	var r Report
	if err := fetch(ctx, socket, path, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// maxRefusal bounds how much of an answer that is no report an error shows.
const maxRefusal = 500

// fetch asks for what is at a path and decodes it.
func fetch(ctx context.Context, socket, path string, into any) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://netagent"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no agent answers on %s: is `netagent run` running on this node, with this --run-dir?", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s may be read by root only: run this as root", socket)
	case err != nil:
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
		return errors.New(strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("the agent on %s gave no status: %w", socket, err)
	}
	return nil
}
