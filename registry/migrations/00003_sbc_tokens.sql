-- +goose Up
ALTER TABLE token ADD COLUMN sbc TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE token DROP COLUMN sbc;
